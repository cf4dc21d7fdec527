"""A small random encoder of every encoder-only text family of transformers, with its own kind of tokenizer.

Two layers of 32 values, and positions for 700 tokens. `EXPECTED` says how each family is computed, or with what words
it is refused; `LEFT_OUT` says why a family is not built here.
`scripts/families_table.py` makes docs/families.md from both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModel

from tests.encoders.tokenizers import make_tokenizer

POSITIONS = 700

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.3,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "attention_dropout": 0.1,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}

# What a family's configuration needs beside `SIZES`.
EXTRA: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 16},
    "bert-generation": {"is_decoder": False},
    "big_bird": {"block_size": 16},
    "convbert": {"embedding_size": 32},
    "deberta-v2": {"relative_attention": True, "position_buckets": 64, "norm_rel_ebd": "layer_norm",
                   "share_att_key": True,
                   "pos_att_type": ["p2c", "c2p"], "max_relative_positions": POSITIONS},
    "deberta": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_relative_positions": POSITIONS},
    "electra": {"embedding_size": 16},
    "esm": {"position_embedding_type": "rotary", "mask_token_id": 4, "token_dropout": True},
    "eurobert": GROUPED,
    "funnel": {"d_model": 32, "block_sizes": [1, 1], "block_repeats": [1, 1], "d_head": 8, "d_inner": 64, "n_head": 4,
               "num_decoder_layers": 1,
               "architectures": ["FunnelModel"]},
    "gemma3_text": {**GROUPED, "sliding_window": 16, "use_bidirectional_attention": True, "query_pre_attn_scalar": 8,
                    "layer_types": ["sliding_attention", "full_attention"]},
    "longformer": {"attention_window": 16},
    "lilt": {"hidden_size": 48, "channel_shrink_ratio": 4},
    "luke": {"entity_vocab_size": 5, "entity_emb_size": 16},
    "mobilebert": {"embedding_size": 16, "intra_bottleneck_size": 32, "true_hidden_size": 32},
    "modernbert": {"local_attention": 32, "global_attn_every_n_layers": 2, "mlp_dropout": 0.1},
    "perceiver": {"d_latents": 32, "d_model": 32, "num_latents": 8, "num_self_attends_per_block": 1, "num_blocks": 1},
    "reformer": {"max_position_embeddings": 704, "attn_layers": ["local", "local"], "axial_pos_embds": False,
                 "feed_forward_size": 64, "attention_head_size": 8},
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 16},
    "roformer": {"embedding_size": 32},
    "squeezebert": {"embedding_size": 32},
    "t5": {"d_kv": 8, "d_ff": 64, "initializer_factor": 3.0},
    "mt5": {"d_kv": 8, "d_ff": 64, "initializer_factor": 3.0},
    "umt5": {"d_kv": 8, "d_ff": 64, "initializer_factor": 3.0},
    "ultrabert": {"sliding_window": 16},
    "xlm": {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "embed_init_std": 0.3, "init_std": 0.3},
    "flaubert": {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "embed_init_std": 0.3, "init_std": 0.3},
    "xlnet": {"d_inner": 64},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "qwen3": GROUPED,
    "qwen2": {"num_key_value_heads": 2},
    "mistral": {"sliding_window": 16, **GROUPED},
    "modernbert-decoder": {"local_attention": 32},
}  # fmt: skip

UNSETTABLE = {"funnel": ("num_hidden_layers",), "xlnet": ("max_position_embeddings",)}

PACKED, PADDED, EQUAL = "packed", "padded", "equal lengths"

# How each family is computed, or words of the message that refuses it.
EXPECTED = {
    **dict.fromkeys(
        [
            "albert",
            "bert",
            "bert-generation",
            "camembert",
            "data2vec-text",
            "distilbert",
            "electra",
            "ernie",
            "esm",
            "esmc",
            "eurobert",
            "gte",
            "jina_embeddings_v3",
            "modernbert",
            "nomic_bert",
            "roberta",
            "roberta-prelayernorm",
            "roc_bert",
            "splinter",
            "ultrabert",
            "xlm-roberta",
            "xlm-roberta-xl",
            "xmod",
            "embedding_gemma2_text",
            "gemma3_text",
            "qwen2",
            "qwen3",
            "mistral",
            "gpt2",
            "modernbert-decoder",
        ],
        PACKED,
    ),
    **dict.fromkeys(
        [
            "big_bird",
            "clip_text_model",
            "deberta",
            "deberta-v2",
            "flaubert",
            "ibert",
            "layoutlm",
            "lilt",
            "longformer",
            "luke",
            "megatron-bert",
            "mobilebert",
            "mpnet",
            "openai_privacy_filter",
            "rembert",
            "roformer",
            "squeezebert",
            "t5",
            "mt5",
            "umt5",
            "xlm",
            "xlnet",
        ],
        PADDED,
    ),
    **dict.fromkeys(["convbert", "fnet", "nystromformer", "reformer", "yoso"], EQUAL),
    **dict.fromkeys(("bros", "markuplm", "neomme", "perceiver"), "reads more than text"),
    **dict.fromkeys(("canine", "funnel"), "fails on sentences of 2 tokens"),
    "dpr": "no state for each token",
    "mra": "depends on that token alone",
    "tapas": "can't be loaded or used",
}
REFUSED = tuple(family for family, how in EXPECTED.items() if how not in (PACKED, PADDED, EQUAL))
COMPUTED = tuple(family for family in EXPECTED if family not in REFUSED)

# Their first token knows nothing of the rest: the last one is pooled.
LEFT_TO_RIGHT = ("qwen2", "qwen3", "mistral", "gpt2", "modernbert-decoder", "clip_text_model")
# Their tokenizers put no token before a sentence: the mean is pooled.
WITHOUT_FIRST_TOKEN = ("bert-generation", "mt5", "openai_privacy_filter", "reformer", "t5", "umt5", "xlnet")
NOT_TRAINED = ("reformer",)  # it seeds its noise from the system, so that no run could be resumed
FLOAT32_ONLY = ("deberta", "xmod")  # they end in a traceback under bfloat16 autocast

LEFT_OUT = {
    "layoutlmv2, layoutlmv3": "read images beside text",
    "visual_bert, vilt, lxmert, bridgetower, flava": "read images beside text",
    "bart, mbart, pegasus, marian, m2m_100, prophetnet, led and kin": "are encoder-decoders and refused as such",
    "longt5, switch_transformers, udop, t5gemma": "are encoder-decoders and refused as such",
    "decoders other than the ones tried (llama, gemma, phi, ...)": "are loaded and checked as those are",
    "mamba, rwkv, xlstm and other recurrent models": "are no transformers; they are checked when they are loaded",
}


def make_member(family: str, folder: Path, **changes: Any) -> Path:
    """Save a random encoder of a family with its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer: Any = make_tokenizer(family, folder, POSITIONS - 8)
    config_class = CONFIG_MAPPING[family]
    known = config_class()
    names = getattr(config_class, "attribute_map", {})
    numbers = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    known_numbers = {name: number for name, number in numbers.items() if number is not None}
    wanted = {**SIZES, **known_numbers, "vocab_size": len(tokenizer) + 8}
    settings = {names.get(name, name): value for name, value in wanted.items() if hasattr(known, names.get(name, name))}
    for name in UNSETTABLE.get(family, ()):
        del settings[name]
    config = config_class(**settings | EXTRA.get(family, {}) | changes)
    torch.manual_seed(0)
    if family in ("t5", "mt5", "umt5"):
        import transformers

        model = getattr(transformers, f"{family.upper() if family != 'mt5' else 'MT5'}EncoderModel")(config)
    else:
        model = AutoModel.from_config(config)
    for parameter in model.parameters():  # some families begin with layers that do nothing
        if parameter.ndim > 1 and float(parameter.detach().abs().max()) < 1e-6:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
