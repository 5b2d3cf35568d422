"""Saliency methods. Each file implements one paper, and every method has the same call.

saliency = GradCAM(layer="layer4")(model, images, target)    # (B, H, W), raw
maps = explain({"gradcam": GradCAM(), "layercam": LayerCAM()}, model, images, target)
"""

from .ablation_cam import AblationCAM
from .attention_rollout import AttentionRollout
from .cam import CAM
from .captum_attribution import CaptumAttribution
from .core.base import Attribution, GradientCAM, explain
from .core.baselines import Baselines, cache_baselines, sample_baselines
from .core.map_operations import degenerate, mask_images, normalize
from .deconv_net import DeconvNet
from .eigen_cam import EigenCAM
from .expected_grad_cam import ExpectedGradCAM
from .expected_grad_cam_plusplus import ExpectedGradCAMPlusPlus
from .expected_gradients import ExpectedGradients
from .extremal_perturbation import ExtremalPerturbation
from .fake_cam import FakeCAM
from .full_grad import FullGrad
from .grad_cam import GradCAM
from .grad_cam_plusplus import GradCAMPlusPlus
from .gradient import Gradient
from .guided_backprop import GuidedBackprop
from .guided_expected_grad_cam import GuidedExpectedGradCAM
from .guided_grad_cam import GuidedGradCAM
from .hires_cam import HiResCAM
from .hyper_expected_grad_cam import HyperExpectedGradCAM
from .input_x_gradient import InputXGradient
from .integrated_gradients import IntegratedGradients
from .layer_cam import LayerCAM
from .occlusion import Occlusion
from .opti_cam import OptiCAM
from .poly_cam import PolyCAM
from .random_map import RandomMap
from .raw_attention import RawAttention
from .rise import RISE
from .score_cam import ScoreCAM
from .smooth_grad import SmoothGrad
from .smooth_grad_cam_plusplus import SmoothGradCAMPlusPlus
from .t_grad import TGrad
from .transformer_attribution import TransformerAttribution
from .xgrad_cam import XGradCAM

__all__ = [
    "CAM",
    "RISE",
    "AblationCAM",
    "AttentionRollout",
    "Attribution",
    "Baselines",
    "CaptumAttribution",
    "DeconvNet",
    "EigenCAM",
    "ExpectedGradCAM",
    "ExpectedGradCAMPlusPlus",
    "ExpectedGradients",
    "ExtremalPerturbation",
    "FakeCAM",
    "FullGrad",
    "GradCAM",
    "GradCAMPlusPlus",
    "Gradient",
    "GradientCAM",
    "GuidedBackprop",
    "GuidedExpectedGradCAM",
    "GuidedGradCAM",
    "HiResCAM",
    "HyperExpectedGradCAM",
    "InputXGradient",
    "IntegratedGradients",
    "LayerCAM",
    "Occlusion",
    "OptiCAM",
    "PolyCAM",
    "RandomMap",
    "RawAttention",
    "ScoreCAM",
    "SmoothGrad",
    "SmoothGradCAMPlusPlus",
    "TGrad",
    "TransformerAttribution",
    "XGradCAM",
    "cache_baselines",
    "degenerate",
    "explain",
    "mask_images",
    "normalize",
    "sample_baselines",
]
