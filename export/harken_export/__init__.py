"""Turns a BERT encoder into a bundle that a harken server loads: PyTorch in, checked ONNX out."""
