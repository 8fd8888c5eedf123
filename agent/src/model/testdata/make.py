"""Writes rope.json beside this file: what transformers computes for each rotary-embedding scaling.

    pip install 'transformers>=5' torch && python make.py
"""

import json
from pathlib import Path

from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeRotaryEmbedding
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

LONG = [1.0 + 0.37 * i for i in range(32)]
SHORT = [1.0 + 0.01 * i for i in range(32)]
CASES = [
    ("default", 1e4, 4096, None, {}),
    ("default 1e6", 1e6, 4096, None, {"rope_type": "default"}),
    ("linear", 1e4, 4096, None, {"rope_type": "linear", "factor": 4.0}),
    ("dynamic within", 1e4, 4096, None, {"rope_type": "dynamic", "factor": 2.0}),
    ("dynamic beyond", 1e4, 4096, 10000, {"rope_type": "dynamic", "factor": 2.0}),
    ("yarn", 1e6, 131072, None, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}),
    ("yarn without original", 1e4, 4096, None, {"rope_type": "yarn", "factor": 8.0}),
    ("yarn mscale", 1e4, 163840, None, {"rope_type": "yarn", "factor": 40.0, "mscale": 0.9, "mscale_all_dim": 0.7,
     "beta_fast": 24, "beta_slow": 2, "original_max_position_embeddings": 4096}),
    ("yarn untruncated", 1.5e5, 131072, None, {"rope_type": "yarn", "factor": 32.0, "truncate": False,
     "attention_factor": 1.25, "original_max_position_embeddings": 4096}),
    ("llama3", 5e5, 131072, None, {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
     "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}),
    ("longrope long", 1e4, 131072, 131072, {"rope_type": "longrope", "long_factor": LONG, "short_factor": SHORT,
     "original_max_position_embeddings": 4096}),
    ("longrope short", 1e4, 131072, 4096, {"rope_type": "longrope", "long_factor": LONG, "short_factor": SHORT,
     "original_max_position_embeddings": 4096}),
    ("longrope factor", 1e4, 131072, 5000, {"rope_type": "longrope", "long_factor": LONG, "short_factor": SHORT,
     "factor": 16.0, "original_max_position_embeddings": 4096}),
]

out = []
for name, theta, positions, length, parameters in CASES:
    config = Qwen3MoeConfig(head_dim=64, max_position_embeddings=positions,
                            rope_parameters={"rope_theta": theta, **parameters})
    kind = config.rope_parameters["rope_type"]
    if kind == "default":
        inv_freq, factor = Qwen3MoeRotaryEmbedding.compute_default_rope_parameters(config)
    else:
        inv_freq, factor = ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=length)
    out.append({
        "name": name,
        "served_positions": length or positions,
        "config": {"head_dim": 64, "max_position_embeddings": positions, "rope_theta": theta,
                   **({"rope_scaling": parameters} if parameters else {})},
        "inv_freq": inv_freq.tolist(),
        "attention_factor": factor,
    })
Path(__file__).with_name("rope.json").write_text(json.dumps(out, indent=None) + "\n")
