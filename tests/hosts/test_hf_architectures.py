"""Our loops on many architectures, each a few thousand random weights: the greedy text is the one that transformers writes.

The judge is transformers' own `generate`. What an architecture keeps from step to step (keys, windows, states of convolutions and
recurrences, an encoder's answer, offsets of positions after an image) has to reach every step of every row, or the texts part.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import pytest
import torch

transformers = pytest.importorskip("transformers")

from fastdecode import hf  # noqa: E402
from tests.support.loops import OLD  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

V, D, NEW, IMAGE = 97, 32, 8, 96
IDS = torch.tensor([[5, 17, 60, 33, 2, 71], [9, 40, 8, 8, 77, 50]])


class Row(NamedTuple):
    """An architecture: the name of its config class, and what makes it tiny."""

    config: str
    values: dict[str, Any]
    model: str = "AutoModelForCausalLM"
    refused: str | None = None  # what generate_temperatures says, if it refuses the model
    old: bool = True  # does the last transformers 4 take these values?


USUAL = {"vocab_size": V, "hidden_size": D, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0,
         "tie_word_embeddings": False}  # fmt: skip
GPT = {
    "vocab_size": V,
    "n_embd": D,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": None,
}
PLAIN = {"vocab_size": V, "hidden_size": D, "num_hidden_layers": 2, "eos_token_id": None, "tie_word_embeddings": False}
HEADS = {**USUAL, "head_dim": 8}
WINDOW = {**HEADS, "sliding_window": 4}
ONE_WINDOW = {**WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
SSM = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
ENCODER = {"vocab_size": V, "d_model": D, "eos_token_id": None, "pad_token_id": 0, "tie_word_embeddings": False}
VISION = {"hidden_size": D, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8,
          "patch_size": 4}  # fmt: skip

ARCHITECTURES = {
    # attention over all that came before
    "gpt2": Row("GPT2Config", GPT),
    "gptj": Row("GPTJConfig", {**GPT, "rotary_dim": 4}),
    "codegen": Row("CodeGenConfig", {**GPT, "rotary_dim": 4}),
    "gpt_neox": Row("GPTNeoXConfig", USUAL),
    "opt": Row("OPTConfig", {**USUAL, "ffn_dim": 48, "word_embed_proj_dim": D}),
    "bloom": Row("BloomConfig", {**PLAIN, "n_layer": 2, "n_head": 4}),
    "mpt": Row("MptConfig", {"vocab_size": V, "d_model": D, "n_layers": 2, "n_heads": 4, "max_seq_len": 64, "eos_token_id": None}),
    "falcon": Row("FalconConfig", {**PLAIN, "num_attention_heads": 4, "bos_token_id": 1}),
    "llama": Row("LlamaConfig", USUAL),
    "qwen2": Row("Qwen2Config", USUAL),
    "qwen3": Row("Qwen3Config", HEADS),
    "gemma": Row("GemmaConfig", HEADS),
    "phi": Row("PhiConfig", USUAL),
    "phi3": Row("Phi3Config", USUAL),
    "olmo2": Row("Olmo2Config", USUAL),
    "cohere": Row("CohereConfig", USUAL),
    "stablelm": Row("StableLmConfig", USUAL),
    "starcoder2": Row("Starcoder2Config", USUAL),
    "smollm3": Row("SmolLM3Config", USUAL),
    "granite": Row("GraniteConfig", USUAL),
    "glm4": Row("Glm4Config", HEADS),
    # mixtures of experts
    "mixtral": Row("MixtralConfig", {**USUAL, "num_local_experts": 4}),
    "qwen2_moe": Row("Qwen2MoeConfig", {**USUAL, **EXPERTS, "shared_expert_intermediate_size": 16}),
    "qwen3_moe": Row("Qwen3MoeConfig", {**HEADS, **EXPERTS}),
    "deepseek_v3": Row("DeepseekV3Config", {
        **USUAL, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
        "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8, "n_group": 2,
        "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1,
    }),
    # windows, shorter than the prompt
    "mistral": Row("MistralConfig", WINDOW),
    "gemma2": Row("Gemma2Config", WINDOW),
    "gemma3_text": Row("Gemma3TextConfig", ONE_WINDOW),
    "gpt_oss": Row("GptOssConfig", {**ONE_WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "gpt_neo": Row("GPTNeoConfig", {
        **PLAIN, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 4,
        "max_position_embeddings": 64,
    }),
    # states, with and without attention
    "mamba": Row("MambaConfig", {**PLAIN, "state_size": 8}),
    "falcon_mamba": Row("FalconMambaConfig", {**PLAIN, "state_size": 8}),
    "mamba2": Row("Mamba2Config", {**PLAIN, "state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8}),
    "jamba": Row("JambaConfig", {
        **USUAL, "num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
        "expert_layer_offset": 1, "num_experts": 2, "num_experts_per_tok": 1, "use_mamba_kernels": False, "mamba_d_state": 8,
    }),
    "bamba": Row("BambaConfig", {**USUAL, **SSM, "attn_layer_indices": [1]}),
    "zamba2": Row("Zamba2Config", {
        **USUAL, "num_hidden_layers": 3, "layers_block_type": ["mamba", "hybrid", "mamba"], "mamba_d_state": 8,
        "mamba_ngroups": 1, "n_mamba_heads": 8, "mamba_headdim": 8, "num_key_value_heads": 4, "chunk_size": 8,
        "num_mem_blocks": 1, "use_mem_rope": True,
    }),
    "granitemoehybrid": Row("GraniteMoeHybridConfig", {
        **USUAL, **SSM, "layer_types": ["mamba", "attention"], "num_local_experts": 2, "num_experts_per_tok": 1,
        "shared_intermediate_size": 16,
    }),
    "falcon_h1": Row("FalconH1Config", {**USUAL, **SSM, "mamba_d_ssm": D, "mamba_n_heads": 4}),
    "lfm2": Row("Lfm2Config", {**USUAL, "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}),
    "qwen3_next": Row("Qwen3NextConfig", {
        **HEADS, **EXPERTS, "shared_expert_intermediate_size": 16, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
        "linear_key_head_dim": 8, "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
    }),
    # states that are not where transformers' cache is, and no cache at all
    "minimax": Row("MiniMaxConfig", {
        **HEADS, "num_local_experts": 2, "num_experts_per_tok": 1, "block_size": 8,
        "layer_types": ["linear_attention", "full_attention"],
    }),
    "recurrent_gemma": Row("RecurrentGemmaConfig", {
        **HEADS, "num_hidden_layers": 3, "num_key_value_heads": 1, "lru_width": D, "attention_window_size": 8,
    }),
    "rwkv": Row("RwkvConfig", {**PLAIN, "attention_hidden_size": D, "intermediate_size": 48, "context_length": 64}),
    "openai-gpt": Row("OpenAIGPTConfig", {**GPT, "eos_token_id": None}),
    # an encoder before the decoder
    "t5": Row("T5Config", {**ENCODER, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0},
              "AutoModelForSeq2SeqLM"),
    "bart": Row("BartConfig", {
        **ENCODER, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64, "decoder_start_token_id": 2,
        "forced_eos_token_id": None, "bos_token_id": 1,
    }, "AutoModelForSeq2SeqLM"),
    # images
    "llava": Row("LlavaConfig", {
        "text_config": {"model_type": "llama", **USUAL}, "vision_config": {"model_type": "clip_vision_model", **VISION},
        "image_token_index": IMAGE, "image_token_id": IMAGE, "vision_feature_layer": -1,
    }, "AutoModelForImageTextToText", old=False),
    "gemma3": Row("Gemma3Config", {
        "text_config": {"model_type": "gemma3_text", **ONE_WINDOW},
        "vision_config": {"model_type": "siglip_vision_model", **VISION}, "mm_tokens_per_image": 4,
        "image_token_id": IMAGE, "image_token_index": IMAGE, "boi_token_id": 94, "eoi_token_id": 95, "boi_token_index": 94,
        "eoi_token_index": 95,
    }, "AutoModelForImageTextToText", old=False),
    "qwen2_vl": Row("Qwen2VLConfig", {
        "text_config": {**USUAL, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}},
        "vision_config": {"depth": 1, "embed_dim": D, "hidden_size": D, "num_heads": 2, "mlp_ratio": 2, "patch_size": 2,
                          "spatial_merge_size": 1, "temporal_patch_size": 1, "in_channels": 3},
        "image_token_id": IMAGE, "video_token_id": 93, "vision_start_token_id": 94, "vision_end_token_id": 95,
    }, "AutoModelForImageTextToText", old=False),
}  # fmt: skip


@functools.cache
def made(name: str):
    """The model, with weights that make one token more likely than the others."""
    row = ARCHITECTURES[name]
    kind = getattr(transformers, row.config, None)
    if kind is None or not hasattr(transformers, row.model):
        pytest.skip(f"{name}: transformers {transformers.__version__} has no {row.config}")
    if OLD and not row.old:
        pytest.skip(f"{name}: transformers {transformers.__version__} takes other values")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, row.model).from_config(kind(**row.values)).eval()
        with torch.no_grad():
            for parameter in (p for n, p in model.named_parameters() if p.ndim >= 2 and not n.endswith("A_log")):
                parameter.mul_(8) if parameter.any() else parameter.normal_()
    return model


@functools.cache
def inputs_of(name: str) -> dict[str, torch.Tensor]:
    """Two prompts; where the model sees, two images with the same words."""
    if "vision_config" not in ARCHITECTURES[name].values:
        return {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    random = torch.Generator().manual_seed(1)
    ids = torch.tensor([[5, 94, *[IMAGE] * 4, 95, 17, 60]] * 2)
    found = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    kinds = (ids == IMAGE).long()
    if name == "qwen2_vl":
        pixels = torch.randn(2 * 4, 3 * 2 * 2, generator=random)
        return found | {
            "pixel_values": pixels,
            "image_grid_thw": torch.tensor([[1, 2, 2]] * 2),
            "mm_token_type_ids": kinds,
        }
    kinds = {"token_type_ids": kinds} if name == "gemma3" else {}
    return found | {"pixel_values": torch.randn(2, 3, 8, 8, generator=random), **kinds}


def asked(name: str, times: int = 1) -> dict[str, Any]:
    """What generate() gets for a greedy text of each prompt, so many times."""
    rows = {key: _repeated(value, times) for key, value in inputs_of(name).items()}
    return {**rows, "max_new_tokens": NEW, "do_sample": False}


def _repeated(value: torch.Tensor, times: int) -> torch.Tensor:
    prompts = len(IDS)  # an image of Qwen's is several rows
    return torch.cat([part for part in value.chunk(prompts) for _ in range(times)])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_greedy_text(name):
    model, options = made(name), asked(name)
    expected = model.generate(**options)
    written = expected[:, -NEW:]
    assert len(set(written.flatten().tolist())) >= 3, "a text that says something"
    if "pixel_values" in options:
        assert not torch.equal(*written), "the images say something"
    assert torch.equal(model.generate(**options, custom_generate=hf.sample), expected)
    with hf.patch(model):
        assert torch.equal(model.generate(**options), expected)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_temperatures(name):
    model, refused = made(name), ARCHITECTURES[name].refused
    options = {"inputs": inputs_of(name), "temperatures": [0.0, 1e-6], "max_new_tokens": NEW}
    if refused is not None:
        with pytest.raises(ValueError, match=refused):
            hf.generate_temperatures(model, **options)
        return
    # Rwkv's texts depend on the other rows, in transformers too: so the judge's batch is the same as ours.
    expected = model.generate(**asked(name, 2))[:, -NEW:].tolist()
    made_texts = hf.generate_temperatures(model, **options, eos_token_id=[])
    assert [text.tokens for text in made_texts] == expected
    # Rows end at different steps, so that some leave the batch, and the rest are what they were.
    end, until = next(
        (end, until)
        for end in sorted({*expected[0], *expected[-1]})
        if len(set(map(len, until := ended(expected, end)))) > 1
    )
    assert [text.tokens for text in hf.generate_temperatures(model, **options, eos_token_id=end)] == until


def ended(texts: list[list[int]], end: int) -> list[list[int]]:
    return [tokens[: tokens.index(end) + 1] if end in tokens else tokens for tokens in texts]


def test_there_are_enough():
    assert len(ARCHITECTURES) >= 32
    if not OLD:
        missing = [name for name, row in ARCHITECTURES.items() if not hasattr(transformers, row.config)]
        assert len(ARCHITECTURES) - len(missing) >= 32, missing
