"""What runs inside tritonserver: the adapter to its Python backend, admission, and a stand-in for its ONNX backend.

adapter.py              tensors, responses, errors and metrics of the Python models; knows `pb_utils`
admission.py            how many requests may be inside the ensemble, counted across its processes
book.py                 what admission knows of these requests and of the rate of answers
onnxruntime_backend.py  takes the place of the C++ onnxruntime backend, which the wheel lacks
encoder.py              encodes each image once, for that stand-in: a queue, a thread, and the requests that wait
onnx_session.py         runs an ONNX file the way a model's configuration says, for that stand-in
cache.py                memory for results, bounded in bytes: image features, and answers by answer_cache.py
"""
