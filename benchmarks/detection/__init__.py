"""Domain-generalised object detection; the task itself is `benchmarks.detection.task`.

Nothing is imported here: protocols read `settings`, and tables read protocols, without torch.
"""
