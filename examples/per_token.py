"""What sampling was like, token by token: its log-probability before and after truncation, the entropy, how many survived.

python examples/per_token.py [MODEL]     a folder or a hub id
"""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

import fastdecode as fd
import fastdecode.hf

name = sys.argv[1] if len(sys.argv) > 1 else "HuggingFaceTB/SmolLM2-135M-Instruct"
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name)
inputs = tokenizer("a storm lit the night", return_tensors="pt")
out = model.generate(
    **inputs, do_sample=True, temperature=1.2, top_k=0, top_p=0.9, max_new_tokens=20, return_dict_in_generate=True,
    custom_generate=fd.hf.sample, seed=7, stats=("raw_logprobs", "entropy"),
)  # fmt: skip
s = out.stats
print("token           ln p      ln q   entropy   kept")
for token, raw, drawn, entropy, kept in zip(s.tokens[0], s.raw_logprobs[0], s.logprobs[0], s.entropy[0], s.kept[0]):
    print(f"{tokenizer.decode(token)!r:12} {raw:8.3f}  {drawn:8.3f}  {entropy:8.3f}  {kept:5d}")
