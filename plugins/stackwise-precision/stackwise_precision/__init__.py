"""Number formats for Stackwise: fp32, bf16 and fp16."""
