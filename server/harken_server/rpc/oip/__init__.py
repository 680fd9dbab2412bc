"""The Open Inference Protocol: one meaning, in `infer`, behind each of its forms."""
