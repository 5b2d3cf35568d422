"""Logits and attention of compiled and exported token streams equal those of eager ones."""

import pytest
import torch
from torch.testing import assert_close

from interpretable_training.models import CAStream, TinyViT, WithAttention


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return WithAttention(CAStream(TinyViT(3, image_size=32, dim=16), num_classes=4)).eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_compiled_token_stream_is_one_graph(net, images):
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    assert_close(compiled(images), net(images))


def test_exported_token_stream_returns_logits_and_attention(net, images):
    program = torch.export.export(net, (images,))
    assert_close(program.module()(images + 1), net(images + 1))


def test_token_stream_runs_in_bfloat16(images):
    torch.manual_seed(0)
    net = WithAttention(CAStream(TinyViT(3, image_size=32, dim=16), num_classes=4)).eval()
    expected = [t.detach() for t in net(images)]
    logits, attention = net.bfloat16()(images.bfloat16())
    assert (logits.dtype, attention.dtype) == (torch.bfloat16, torch.float32)
    assert_close(logits.float(), expected[0], rtol=0.05, atol=0.05)
    assert_close(attention, expected[1], rtol=0.1, atol=0.02)


@pytest.mark.slow
def test_onnx_runtime_returns_logits_and_attention(net, images, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    names = ["logits", "attention"]
    path = str(tmp_path / "stream.onnx")
    torch.onnx.export(net, (images,), path, dynamo=True, input_names=["images"], output_names=names, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    results = session.run(names, {"images": (images + 1).numpy()})
    for result, expected in zip(results, net(images + 1)):
        assert_close(torch.from_numpy(result), expected.detach(), rtol=1e-4, atol=1e-5)
