"""Hugging Face `generate` with our sampler: one argument in the call, or a context around calls that stay as they are.

python examples/generate.py [MODEL]     a folder or a hub id
"""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer

import fastdecode as fd
import fastdecode.hf

name = sys.argv[1] if len(sys.argv) > 1 else "HuggingFaceTB/SmolLM2-135M-Instruct"
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name)
inputs = tokenizer("the old keeper saw", return_tensors="pt")
# top_k=0, as transformers cuts to the 50 largest logits unless told otherwise; fastdecode warns where that matters.
options = {"do_sample": True, "temperature": 1.2, "top_k": 0, "max_new_tokens": 20}

# One argument. The same seed gives the same text, whatever torch's generator has done before.
ids = model.generate(**inputs, **options, min_p=0.05, custom_generate=fd.hf.sample, seed=7)
print("min-p:", tokenizer.decode(ids[0]))

# Top-H as the paper has it, not as transformers does.
ids = model.generate(**inputs, **options, top_h=0.4, custom_generate=fd.hf.sample_with(seed=7, top_h_variant="paper"))
print("Top-H:", tokenizer.decode(ids[0]))

# No change to the call at all, streamers included; beam search and the like pass through to transformers.
with fd.hf.patch(model, seed=7):
    model.generate(**inputs, **options, typical_p=0.9, streamer=TextStreamer(tokenizer))
