"""Portrait, speech and keypoints in, video out: prepare once, sample, decode."""

from vexpress.pipeline.pipeline import VExpressPipeline, VExpressPipelineOutput

__all__ = ["VExpressPipeline", "VExpressPipelineOutput"]
