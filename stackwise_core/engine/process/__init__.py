"""The process: generators and flags of torch, threads, memory."""
