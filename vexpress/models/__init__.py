"""The networks. They know tensors only: no files, no configuration files, no logging."""

from vexpress.models.attributes import AttributeProjection
from vexpress.models.audio_projection import AudioProjection
from vexpress.models.conditions import Conditions
from vexpress.models.denoising_unet import DenoisingUNet
from vexpress.models.reference_net import ReferenceNet
from vexpress.models.v_kps_guider import VKpsGuider

__all__ = ["AttributeProjection", "AudioProjection", "Conditions", "DenoisingUNet", "ReferenceNet", "VKpsGuider"]
