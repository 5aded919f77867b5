"""What did it buy: accuracy against forward tokens and FLOPs, with intervals."""
