"""Every row of a batch with its own temperature, rule strength and seed; the first row is greedy. One call, one pass.

python examples/rows.py [MODEL]     a folder or a hub id
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import fastdecode as fd
import fastdecode.hf

name = sys.argv[1] if len(sys.argv) > 1 else "HuggingFaceTB/SmolLM2-135M-Instruct"
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name)

temperatures, min_p = torch.tensor([0.0, 0.7, 1.5]), torch.tensor([1.0, 0.1, 0.05])
plan = fd.plan(fd.temperature(temperatures), fd.min_p(min_p))
inputs = tokenizer(["the young keeper found"] * 3, return_tensors="pt")
ids = model.generate(
    **inputs, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=20,  # the plan has it all
    logits_processor=[fd.hf.FusedLogitsProcessor(plan)],
    custom_generate=fd.hf.sample, seed=torch.tensor([1, 1, 2]),
)  # fmt: skip
for t, row in zip(temperatures.tolist(), ids):
    print(f"T = {t:.1f}:", tokenizer.decode(row))
