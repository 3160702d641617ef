"""Random models that know nothing, made here: what runs `generate` where nothing may be downloaded."""

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
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", eos_token="<end>", model_input_names=["input_ids", "attention_mask"]
    )
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=128, bos_token_id=1, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


VOCAB = 300


def llama(eos: int | None = None):
    """A decoder: random weights, such that the next token is neither certain nor anyone's guess."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, bos_token_id=1, eos_token_id=eos, pad_token_id=0,
        attn_implementation="eager",  # the only one that returns attentions
    )  # fmt: skip
    return _seeded(lambda: LlamaForCausalLM(config), 0.5)


def bart():
    """An encoder and a decoder."""
    from transformers import BartConfig, BartForConditionalGeneration

    config = BartConfig(
        vocab_size=VOCAB, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=64, init_std=0.1, decoder_start_token_id=2,
        bos_token_id=1, eos_token_id=None, forced_eos_token_id=None, pad_token_id=0, tie_word_embeddings=False,
        attn_implementation="eager",
    )  # fmt: skip
    return _seeded(lambda: BartForConditionalGeneration(config), 0.5)


def _seeded(make, spread: float):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().eval()
        torch.nn.init.normal_(model.lm_head.weight, std=spread)
    return model
