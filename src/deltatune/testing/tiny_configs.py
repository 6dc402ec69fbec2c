"""Configurations of tiny models of further families, for coverage.

    model = tiny("whisper")
    model(**inputs("whisper"))

A name is transformers' model type, or that of a variant with `model_type` among its settings.
"""

from __future__ import annotations

from typing import Any, Literal

Input = Literal["pixels", "waves", "mel", "spectrogram"]

END = 2
POSITIONS = 128
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.1,
    "image_size": 16,
    "patch_size": 8,
    "num_channels": 3,
}
PLAIN: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.1,
}
GROUPED: dict[str, Any] = {**PLAIN, "num_key_value_heads": 2, "head_dim": 8}
EXPERTS: dict[str, Any] = {**GROUPED, "num_local_experts": 2, "num_experts": 2, "num_experts_per_tok": 1}
WAVES: dict[str, Any] = {
    **{name: value for name, value in PLAIN.items() if name != "max_position_embeddings"},
    "conv_dim": [16, 16],
    "conv_kernel": [4, 4],
    "conv_stride": [2, 2],
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "num_feat_extract_layers": 2,
    "mask_time_prob": 0.0,  # otherwise it masks random frames in training mode
}
GPT: dict[str, Any] = {"n_embd": 32, "n_inner": 48, "n_layer": 2, "n_head": 4, "n_positions": POSITIONS}
T5: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
BART: dict[str, Any] = {
    "d_model": 32,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
    "init_std": 0.1,
    "decoder_start_token_id": END,
    "forced_eos_token_id": None,
}
FALCON: dict[str, Any] = {
    "model_type": "falcon",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_hidden_size": 48,
    "initializer_range": 0.1,
}

ENCODERS: dict[str, dict[str, Any]] = {
    "xlm-roberta": {**PLAIN, "max_position_embeddings": POSITIONS + 1, "type_vocab_size": 1},
    "albert": {**PLAIN, "embedding_size": 16},
    "electra": {**PLAIN, "embedding_size": 16},
    "deberta": {**PLAIN, "pos_att_type": ["c2p", "p2c"], "relative_attention": True},
    "deberta-v2": {
        **PLAIN,
        "pos_att_type": ["c2p", "p2c"],
        "relative_attention": True,
        "position_buckets": 8,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
    },
    "modernbert": {**PLAIN, "cls_token_id": 1, "sep_token_id": 2},
    "nomic_bert": PLAIN,
    "eurobert": GROUPED,
    "esm": {**PLAIN, "mask_token_id": 3},
    "xlm-roberta-xl": PLAIN,
    "rembert": {**PLAIN, "input_embedding_size": 16, "output_embedding_size": 24},
    "megatron-bert": PLAIN,
    "roformer": PLAIN,
    "mobilebert": {**PLAIN, "embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16},
    "fnet": PLAIN,
    "longformer": {**PLAIN, "attention_window": [8, 8]},
    "clip_text_model": {**PLAIN, "eos_token_id": END + 1},
}
DECODERS: dict[str, dict[str, Any]] = {
    "gpt_neo": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_layers": 2,
        "num_heads": 4,
        "max_position_embeddings": POSITIONS,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 16,
        "initializer_range": 0.1,
    },
    "gptj": {**GPT, "rotary_dim": 4, "initializer_range": 0.1},
    "gpt_bigcode": {**GPT, "n_head": 2, "initializer_range": 0.1},
    "codegen": {**GPT, "rotary_dim": 4, "initializer_range": 0.1},
    "opt-350m": {
        "model_type": "opt",
        "hidden_size": 32,
        "word_embed_proj_dim": 16,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": POSITIONS,
        "init_std": 0.1,
        "do_layer_norm_before": False,
    },
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.1},
    "falcon-7b": {
        **FALCON,
        "num_attention_heads": 2,
        "new_decoder_architecture": False,
        "multi_query": True,
        "parallel_attn": True,
    },
    "falcon-40b": {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon-rw": {**FALCON, "multi_query": False, "parallel_attn": False, "alibi": True, "bias": True},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": POSITIONS, "expansion_ratio": 2},
    "qwen3": GROUPED,
    "gemma": GROUPED,
    "gemma2": {**GROUPED, "query_pre_attn_scalar": 8},
    "gemma3_text": {**GROUPED, "query_pre_attn_scalar": 8},
    "phi": {**PLAIN, "num_key_value_heads": 4},
    "phi3": {**GROUPED, "original_max_position_embeddings": POSITIONS},
    "cohere": GROUPED,
    "olmo": GROUPED,
    "olmo2": GROUPED,
    "stablelm": GROUPED,
    "starcoder2": GROUPED,
    "granite": GROUPED,
    "smollm3": GROUPED,
    "glm4": {**GROUPED, "partial_rotary_factor": 0.5},
    "nemotron": GROUPED,
    "persimmon": PLAIN,
    "lfm2": {**GROUPED, "full_attn_idxs": [1]},
    "mixtral": EXPERTS,
    "qwen2_moe": {**EXPERTS, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24},
    "qwen3_moe": {**EXPERTS, "moe_intermediate_size": 24},
    "deepseek_v3": {
        **PLAIN,
        "n_routed_experts": 2,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
        "num_experts_per_tok": 1,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 24,
        "first_k_dense_replace": 1,
    },
}
SEQ2SEQ: dict[str, dict[str, Any]] = {
    "mt5": {**T5, "feed_forward_proj": "gated-gelu"},
    "umt5": {**T5, "feed_forward_proj": "gated-gelu"},
    "longt5": T5,
    "switch_transformers": {
        **T5,
        "num_decoder_layers": 2,
        "num_sparse_encoder_layers": 1,
        "num_sparse_decoder_layers": 1,
        "num_experts": 2,
        "expert_capacity": 64,
    },
    "mbart": BART,
    "pegasus": BART,
    "marian": BART,
    "blenderbot": BART,
    "m2m_100": BART,
    "led": {
        **{name: value for name, value in BART.items() if name != "max_position_embeddings"},
        "max_encoder_position_embeddings": POSITIONS,
        "max_decoder_position_embeddings": POSITIONS,
        "attention_window": [8, 8],
    },
    "prophetnet": {
        "hidden_size": 32,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "num_encoder_attention_heads": 4,
        "num_decoder_attention_heads": 4,
        "max_position_embeddings": POSITIONS,
        "init_std": 0.1,
    },
}
SENSES: dict[str, dict[str, Any]] = {
    "vit": VISION,
    "deit": VISION,
    "dinov2": VISION,
    "dinov3_vit": VISION,
    "beit": VISION,
    "clip_vision_model": VISION,
    "siglip_vision_model": VISION,
    "swin": {
        "image_size": 16,
        "patch_size": 4,
        "embed_dim": 16,
        "depths": [2, 1],
        "num_heads": [2, 2],
        "window_size": 2,
    },
    "wav2vec2": WAVES,
    "hubert": WAVES,
    "audio-spectrogram-transformer": {
        **VISION,
        "max_length": 32,
        "num_mel_bins": 16,
        "frequency_stride": 8,
        "time_stride": 8,
    },
    "whisper": {
        **{name: value for name, value in BART.items() if name != "max_position_embeddings"},
        "num_mel_bins": 8,
        "max_source_positions": 16,
        "max_target_positions": POSITIONS,
    },
}
"""Images and sounds."""

FAMILIES: dict[str, dict[str, Any]] = {**ENCODERS, **DECODERS, **SEQ2SEQ, **SENSES}
"""All of them, by name."""

READS: dict[str, Input] = {
    **dict.fromkeys(SENSES, "pixels"),
    "wav2vec2": "waves",
    "hubert": "waves",
    "audio-spectrogram-transformer": "spectrogram",
    "whisper": "mel",
}
"""Input of the families that read no tokens."""
SHAPES: dict[Input, tuple[str, tuple[int, ...]]] = {
    "pixels": ("pixel_values", (3, 16, 16)),
    "waves": ("input_values", (64,)),
    "spectrogram": ("input_values", (32, 16)),
    "mel": ("input_features", (8, 32)),
}
"""Argument and shape of one row."""
