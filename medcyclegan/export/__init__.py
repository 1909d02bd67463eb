"""A trained run as something that other programs run: a MONAI bundle, ONNX, a torch program, a model for 3D Slicer."""
