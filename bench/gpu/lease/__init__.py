"""`make gpu-lease`: what a few minutes on a bare GPU machine are used for. docs/gpu.md tells an owner of a GPU what to do."""
