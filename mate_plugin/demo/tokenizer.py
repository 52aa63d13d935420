"""A byte-level tokenizer without training: 256 bytes, syllables, and the same behind a space."""

from __future__ import annotations

import json
from pathlib import Path

SPECIAL = ("<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>", "<|system|>")
BOS, EOS = 256, 257
CONSONANTS = "bcdfghjklmnprstvwyz"
VOWELS = "aeiou"
CHAT_TEMPLATE = (
    "{{ '<|bos|>' }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SYLLABLES = [c + v for c in CONSONANTS for v in VOWELS]
FIRST_SYLLABLE = 256 + len(SPECIAL)
VOCABULARY = FIRST_SYLLABLE + 2 * len(SYLLABLES)


def write_tokenizer(folder: Path, max_length: int) -> None:
    """Write tokenizer.json, tokenizer_config.json and generation_config.json into ``folder``."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    space = "Ġ"  # how byte-level tokenizers spell a space
    spaced = [space + syllable for syllable in SYLLABLES]
    tokens = [*alphabet, *SPECIAL, *SYLLABLES, *spaced]
    merges = [(s[0], s[1]) for s in SYLLABLES] + [(space, s) for s in SYLLABLES]

    tokenizer = Tokenizer(
        models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))

    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[0],
        "eos_token": SPECIAL[1],
        "pad_token": SPECIAL[1],
        "additional_special_tokens": list(SPECIAL[2:]),
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    _write(folder / "tokenizer_config.json", settings)
    _write(folder / "generation_config.json", {"bos_token_id": BOS, "eos_token_id": EOS})


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
