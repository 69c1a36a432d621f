"""Residual vector quantization by transformers' EnCodec and, one codebook at a time, by SciPy."""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.multimodal.vq import VQ


@oracle(VQ, library="transformers EncodecResidualVectorQuantizer", needs=("transformers", "torch"))
def encodec(x_BTD: np.ndarray, codes_QCD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    import torch
    from transformers import EncodecConfig
    from transformers.models.encodec.modeling_encodec import EncodecResidualVectorQuantizer

    if codes_QCD.shape[1] == 1:  # EnCodec divides by the bits of a code: give it a second one that is nearest to nothing
        codes_QCD = np.concatenate([codes_QCD, np.full_like(codes_QCD, 1e6)], axis=1)
    Q, C, D = codes_QCD.shape
    config = EncodecConfig(codebook_size=C, codebook_dim=D)
    quantizer = EncodecResidualVectorQuantizer(config).double()
    quantizer.num_quantizers = Q
    layers = [type(quantizer.layers[0])(config).double() for _ in range(Q)]
    for layer, codes_CD in zip(layers, codes_QCD):
        layer.codebook.embed.copy_(torch.from_numpy(codes_CD.copy()))
    quantizer.layers = torch.nn.ModuleList(layers)
    codes_QBT = quantizer.encode(torch.from_numpy(np.moveaxis(x_BTD, 1, 2).copy()))
    near_BDT = quantizer.decode(codes_QBT)
    return np.moveaxis(codes_QBT.numpy(), 0, -1), np.moveaxis(near_BDT.numpy(), 1, 2)


@oracle(VQ, library="scipy.cluster.vq.vq", needs=("scipy",))
def scipy(x_BTD: np.ndarray, codes_QCD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from scipy.cluster.vq import vq

    left, ids = x_BTD.reshape(-1, x_BTD.shape[-1]), []
    for codes_CD in codes_QCD:
        found, _ = vq(left, codes_CD, check_finite=False)
        left = left - codes_CD[found]
        ids.append(found)
    ids_BTQ = np.stack(ids, axis=-1).reshape(*x_BTD.shape[:2], -1).astype(np.int64)
    return ids_BTQ, x_BTD - left.reshape(x_BTD.shape)
