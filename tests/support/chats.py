"""Chat templates of several kinds, and a tokenizer that knows their special tokens."""

from support import vocabularies

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INST = (
    "{% for m in messages %}{% if m.role == 'user' %}<s>[INST] {{ m.content | trim }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content | trim }} </s>{% else %}{{ raise_exception('no ' + m.role) }}"
    "{% endif %}{% endfor %}"
)
"""As Llama 2: no generation prompt, a space before and behind the answer."""
NO_END = (
    "{% for m in messages %}{{ m.role | capitalize }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
NO_PROMPT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
"""The model has to write the header of its turn itself."""
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% if loop.last %}"
    "{% if '<think>' not in m.content %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}"
    "{% else %}{{ m.content.split('</think>')[-1].lstrip('\n') }}{% endif %}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As Qwen 3: only the last answer shows its thoughts, and has empty ones if it has none."""
NO_THOUGHTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content.split('</think>')[-1].lstrip('\n') }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
"""As DeepSeek-R1: thoughts are asked for, and never shown."""
TEMPLATES = {
    "chatml": CHATML,
    "inst": INST,
    "no end": NO_END,
    "no prompt": NO_PROMPT,
    "thinking": THINKING,
    "no thoughts": NO_THOUGHTS,
}


def chat_tokenizer(template="chatml"):
    """Byte pairs, so that every text can be read back; <|end|> is the end token, <|im_end|> no special one."""
    made = vocabularies.tokenizer("bytes")
    made.add_special_tokens({"eos_token": "<|end|>", "additional_special_tokens": ["<|im_start|>", "<s>", "</s>"]})
    made.add_tokens(["<|im_end|>"])
    made.chat_template = TEMPLATES[template]
    return made


def talk(*contents, system=None):
    """A conversation of these turns, the user's first."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    return [{"role": "system", "content": system}, *turns] if system else turns
