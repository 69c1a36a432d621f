"""The family over torch: its scaled-dot-product attention, norms and products, on whichever device holds the weights."""

from llmlab.kernels.models._decoder_torch import decoder_logits
from llmlab.kernels.twin import twin
from llmlab.reference.models.mixtral import MIXTRAL

twin(MIXTRAL, backend="torch")(decoder_logits)
