"""ONNX: graphs of whole models, which onnxruntime runs without torch."""
