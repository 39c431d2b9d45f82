"""From an admitted request to the tensors of its model: strictly what the manifest declares, or an error that names it.

Trusts: `Admitted`, and the checked manifest. Never: runs a model; takes what it does not know for something else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sealgate.ambient import Clock
from sealgate.certificate.inputs import InputTensor
from sealgate.errors import DecodeError
from sealgate.protocol import inference
from secure_runtime.errors import BadInput
from secure_runtime.models.bundle import LoadedModel
from secure_runtime.worker.engine.columns import columns_in, table_of
from secure_runtime.worker.engine.noise import require_few_rows
from secure_runtime.worker.engine.tensors import Rows, to_model
from secure_runtime.worker.gatekeeper import Admitted

TOO_SLOW = BadInput("the rows could not be answered in time; send fewer at once", status=504, code="model-error")
_NOT_OFFERED = {
    "classification": "send no class_count: scores and labels are outputs of their own",
    "shared_memory_region": "there is no memory to share with a sealed runtime; send the data",
}


@dataclass(kw_only=True)
class Job:
    """One request about rows on its way through a batch."""

    index: int
    admitted: Admitted
    model: LoadedModel
    request: inference.InferRequest
    wants_binary: inference.BinaryOutputs
    inputs: dict[str, Rows]  # by the manifest's names, [rows, ...] each
    rows: int
    max_body: int  # bytes of the answer's body
    memory: int = 0  # bytes that forming the answer takes, about


def clock_watch(admitted: Admitted, clock: Clock) -> Callable[[], None]:
    """What raises as soon as nobody waits for this request any more."""

    def go_on() -> None:
        if clock() >= admitted.grant.expires_us:
            raise BadInput(str(TOO_SLOW), status=TOO_SLOW.status, code="model-error")  # a shared one keeps traces

    return go_on


def parse(index: int, admitted: Admitted, model: LoadedModel, clock: Clock, *, max_body: int) -> Job:
    """The request's tensors as the model takes them; raises BadInput."""
    try:
        request, wants_binary = inference.decode_infer_request(admitted.request.fields, admitted.request.body)
    except DecodeError as error:
        raise BadInput(str(error)) from None
    _require_offered(request)
    inputs = _inputs(request.inputs, model.manifest.inputs, clock_watch(admitted, clock))
    rows = next(iter(inputs.values())).shape[0]
    if any(one.shape[0] != rows for one in inputs.values()):
        sent = ", ".join(f"'{name}' has {one.shape[0]}" for name, one in inputs.items())
        raise BadInput(f"the inputs must have the same number of rows: {sent}", code="input-shape")
    obligations = admitted.grant.obligations
    if obligations.noise_epsilon_micro and admitted.target.operation == "infer":
        require_few_rows(rows, model.manifest, noise_rows=obligations.noise_rows)
    return Job(
        index=index,
        admitted=admitted,
        model=model,
        request=request,
        wants_binary=wants_binary,
        inputs=inputs,
        rows=rows,
        max_body=max_body,
    )


def require_outputs(request: inference.InferRequest, known: Sequence[str], *, of: str = "the model") -> None:
    """Raise BadInput for a requested output that there is not."""
    for wanted in request.outputs:
        if wanted.name not in known:
            raise BadInput(f"{of} has no output '{wanted.name}'; it has: {', '.join(sorted(known))}")


def _require_offered(request: inference.InferRequest) -> None:
    """Extensions of the protocol that would change the answer are refused where they are asked for, never ignored."""
    for what, named in (("input", request.inputs), ("output", request.outputs)):
        for one in named:
            for parameter, why in _NOT_OFFERED.items():
                if parameter in one.parameters:
                    raise BadInput(f"{what} '{one.name}' has the parameter {parameter}, which is not offered: {why}")


def _inputs(
    sent: Sequence[inference.Tensor], specs: Sequence[InputTensor], go_on: Callable[[], None]
) -> dict[str, Rows]:
    """Each declared input, from one tensor of its name or, for a table, from one for each of its columns."""
    given = {tensor.name: tensor for tensor in sent}
    found: dict[str, Rows] = {}
    for spec in specs:
        if spec.name in given:
            found[spec.name] = to_model(given.pop(spec.name), spec, go_on=go_on)
        elif columns := columns_in(given.keys(), spec):
            found[spec.name] = table_of({name: given.pop(name) for name in list(given) if name in columns}, spec)
    if given or len(found) != len(specs):
        raise BadInput(f"the model takes exactly these inputs: {_expected(specs)}{_other(given)}")
    return found


def _other(given: Mapping[str, inference.Tensor]) -> str:
    return f"; not '{next(iter(given))}'" if given else ""


def _expected(specs: Sequence[InputTensor]) -> str:
    return ", ".join(
        f"'{spec.name}' {spec.datatype} [{', '.join('rows' if side == -1 else str(side) for side in spec.shape)}]"
        for spec in specs
    )
