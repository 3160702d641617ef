"""A language model of forty words that knows nothing, made here: what runs `generate` where nothing may be downloaded."""

from __future__ import annotations

from pathlib import Path

import torch

WORDS = "the a old young sea sky boat lamp letter keeper storm night saw found read lost lit wrote and then but of in".split()


def save(folder: Path) -> Path:
    """Write a random Llama and its tokenizer, as `from_pretrained` reads them; the folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<unk>", "<end>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="<end>").save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=128, bos_token_id=1, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder
