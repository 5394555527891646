"""Domain-generalised semantic segmentation; the task itself is `benchmarks.segmentation.task`."""
