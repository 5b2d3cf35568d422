"""Given a model and images, saliency maps. One paper, one file; every method is called alike.

saliency = GradCAM(layer="layer4")(model, images, target)    # (B, H, W), raw
maps = explain({"gradcam": GradCAM(), "layercam": LayerCAM()}, model, images, target)
"""

from .ablation_cam import AblationCAM
from .attention_rollout import AttentionRollout
from .base import Attribution, GradientCAM, explain
from .cam import CAM
from .captum_attribution import CaptumAttribution
from .deconv_net import DeconvNet
from .eigen_cam import EigenCAM
from .expected_gradients import ExpectedGradients
from .fake_cam import FakeCAM
from .grad_cam import GradCAM
from .grad_cam_plusplus import GradCAMPlusPlus
from .gradient import Gradient
from .guided_backprop import GuidedBackprop
from .guided_grad_cam import GuidedGradCAM
from .hires_cam import HiResCAM
from .input_x_gradient import InputXGradient
from .integrated_gradients import IntegratedGradients
from .layer_cam import LayerCAM
from .maps import degenerate, mask_images, normalize
from .opti_cam import OptiCAM
from .random_map import RandomMap
from .raw_attention import RawAttention
from .score_cam import ScoreCAM
from .smooth_grad import SmoothGrad
from .smooth_grad_cam_plusplus import SmoothGradCAMPlusPlus
from .xgrad_cam import XGradCAM

__all__ = [
    "CAM",
    "AblationCAM",
    "AttentionRollout",
    "Attribution",
    "CaptumAttribution",
    "DeconvNet",
    "EigenCAM",
    "ExpectedGradients",
    "FakeCAM",
    "GradCAM",
    "GradCAMPlusPlus",
    "Gradient",
    "GradientCAM",
    "GuidedBackprop",
    "GuidedGradCAM",
    "HiResCAM",
    "InputXGradient",
    "IntegratedGradients",
    "LayerCAM",
    "OptiCAM",
    "RandomMap",
    "RawAttention",
    "ScoreCAM",
    "SmoothGrad",
    "SmoothGradCAMPlusPlus",
    "XGradCAM",
    "degenerate",
    "explain",
    "mask_images",
    "normalize",
]
