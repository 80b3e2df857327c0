"""Networks in other frameworks' formats: ONNX and NIR."""
