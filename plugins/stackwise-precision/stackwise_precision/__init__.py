"""Number formats for Stackwise: fp32, bf16 and fp16; for frozen stacks also fp8, nvfp4 and nf_fp8."""
