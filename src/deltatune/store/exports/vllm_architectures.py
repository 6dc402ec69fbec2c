"""Architectures for which vLLM takes LoRA, and of which also their embeddings, as declared in vLLM 0.32.

Text models alone: multimodal ones take LoRA too, on their language model.
"""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


WITH_BOTH_EMBEDDINGS = _names(
    """
    ApertusForCausalLM DeciLMForCausalLM Ernie4_5ForCausalLM Exaone4ForCausalLM ExaoneForCausalLM
    ExaoneMoEForCausalLM ExaoneMoeForCausalLM FalconH1ForCausalLM GraniteForCausalLM GraniteMoeForCausalLM
    GraniteMoeHybridForCausalLM GraniteMoeSWAForCausalLM GraniteMoeSharedForCausalLM GraniteSWAForCausalLM
    HyperCLOVAXForCausalLM IQuestCoderForCausalLM InternLM3ForCausalLM JambaForCausalLM
    JambaForSequenceClassification JinaEmbeddingsV5Model K2HorizonForCausalLM LLaMAForCausalLM Lfm2ForCausalLM
    Lfm2MoeForCausalLM Llama4ForCausalLM LlamaForCausalLM LlamaModel MiniCPM3ForCausalLM MiniCPMForCausalLM
    MistralModel MixtralForCausalLM NemotronForCausalLM NemotronHForCausalLM NemotronHPuzzleForCausalLM
    Param2MoEForCausalLM Phi3ForCausalLM PhiMoEForCausalLM Qwen3ForCausalLM Qwen3MoeForCausalLM Qwen3_5ForCausalLM
    Qwen3_5MoeForCausalLM SolarForCausalLM TeleChat2ForCausalLM TeleChat3ForCausalLM TeleFLMForCausalLM
    """
)
"""LoRA on linear maps, on the input embeddings and on the language-model head."""

WITH_INPUT_EMBEDDINGS = _names(
    """
    ArceeForCausalLM Cohere2ForCausalLM CohereForCausalLM CwmForCausalLM Emu3ForConditionalGeneration
    FlexOlmoForCausalLM GPTBigCodeForCausalLM GPTNeoXForCausalLM GlmForCausalLM HunYuanDenseV1ForCausalLM
    HunYuanMoEV1ForCausalLM HunYuanVLForConditionalGeneration Jais2ForCausalLM MellumForCausalLM NanbeigeForCausalLM
    Olmo2ForCausalLM Olmo3ForCausalLM OlmoForCausalLM PhiForCausalLM SeedOssForCausalLM SmolLM3ForCausalLM
    Starcoder2ForCausalLM VaultGemmaForCausalLM VibeVoiceAsrForConditionalGeneration
    """
)
"""LoRA on linear maps and on the input embeddings."""

LINEAR_ONLY = _names(
    """
    AXK1ForCausalLM AfmoeForCausalLM BailingMoeForCausalLM BailingMoeV2ForCausalLM BertModel
    BertSpladeSparseEmbeddingModel BgeM3EmbeddingModel ChatGLMForConditionalGeneration ChatGLMModel
    ClefOmniForJointSchema DeepseekForCausalLM DeepseekV2ForCausalLM DeepseekV3BidirectionalModel
    DeepseekV3ForCausalLM Ernie4_5_MoeForCausalLM Gemma2ForCausalLM Gemma2Model Gemma3ForCausalLM Gemma4ForCausalLM
    GemmaForCausalLM Glm4ForCausalLM Glm4MoeForCausalLM Glm4MoeLiteForCausalLM GlmMoeDsaForCausalLM
    GptOssForCausalLM HYV3ForCausalLM InternLM2ForCausalLM InternLM2ForRewardModel JinaVLForRanking
    LagunaForCausalLM LlamaNemotronVLForSequenceClassification LlamaNemotronVLModel LongcatFlashForCausalLM
    LongcatFlashNgramForCausalLM MiMoForCausalLM MiniMaxM2ForCausalLM Ministral3ForCausalLM MistralForCausalLM
    MistralLarge3ForCausalLM ModernBertModel MuseGlimmerForCausalLM OPTForCausalLM OlmoHybridForCausalLM
    OlmoeForCausalLM PanguEmbeddedForCausalLM PanguProMoEV2ForCausalLM PanguUltraMoEForCausalLM Plamo3ForCausalLM
    Qwen2ForCausalLM Qwen2ForProcessRewardModel Qwen2ForRewardModel Qwen2Model Qwen2MoeForCausalLM
    Qwen3ASRForcedAlignerForTokenClassification Qwen3NextForCausalLM Rnj1ForCausalLM RobertaForMaskedLM
    RobertaForSequenceClassification RobertaModel SarvamMLAForCausalLM SarvamMoEForCausalLM
    VoyageQwen3BidirectionalEmbedModel XLMRobertaForSequenceClassification XLMRobertaModel
    """
)
"""LoRA on linear maps alone."""

SERVED = WITH_BOTH_EMBEDDINGS | WITH_INPUT_EMBEDDINGS | LINEAR_ONLY
