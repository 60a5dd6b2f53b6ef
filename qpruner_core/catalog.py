"""What we can do: every extension is one file and one entry here.

Entries are data. Reading this module imports no torch; `Registry.target` imports
what an entry names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qpruner_core.domain.footprint import PrecisionFormat
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.domain.spec import RunSpec
from qpruner_core.errors import BadInputError
from qpruner_core.registry import Entry, Option, Registry

if TYPE_CHECKING:
    from qpruner_core.export import Exporter
    from qpruner_core.models.architectures import Architecture
    from qpruner_core.quantization import Precision
    from qpruner_core.recovery.initialization import Initialization

_AGGREGATION = Option(
    "aggregation",
    default="element",
    choices=("element", "vector"),
    help="Take magnitudes weight by weight, or of the sum over all weights of a unit.",
)

_N_SAMPLES = Option("n_samples", default=1024, low=64, high=65536, help="Token positions sampled.")
_INFORMATION: dict[str, object] = {
    "scores": "layers",
    "needs": "activations",
    "streams": False,
    "takes_seed": True,
    "unit": "nats",
}


def _n_components(default: int) -> Option:
    return Option(
        "n_components",
        default=default,
        low=1,
        high=32,
        help="Dimensions kept of the layer output.",
    )


CRITERIA: Registry[Any] = Registry(
    "importance criterion",
    Entry(
        name="taylor",
        title="Taylor, first order",
        summary="|w g| summed over a unit's weights: the loss change its removal predicts. "
        "Needs gradients.",
        target="qpruner_core.importance.taylor:TaylorCriterion",
        options=(_AGGREGATION,),
        facts={"scores": "units", "needs": "gradients", "streams": False},
    ),
    Entry(
        name="taylor_second",
        title="Taylor, second order",
        summary="1/2 (w g)^2 per sequence, the Fisher information in the place of the Hessian. "
        "Needs gradients.",
        target="qpruner_core.importance.taylor_second:TaylorSecondCriterion",
        options=(_AGGREGATION,),
        facts={"scores": "units", "needs": "gradients", "streams": False},
    ),
    Entry(
        name="taylor_mixed",
        title="Taylor, both orders",
        summary="|w g - 1/2 (w g)^2|: first and second order together, as in LLM-Pruner. Needs "
        "gradients.",
        target="qpruner_core.importance.taylor_mixed:TaylorMixedCriterion",
        options=(_AGGREGATION,),
        facts={"scores": "units", "needs": "gradients", "streams": False},
    ),
    Entry(
        name="wanda",
        title="Wanda",
        summary="Weights times the norm of what they are multiplied with, where a unit's output "
        "is read. Needs one forward pass.",
        target="qpruner_core.importance.wanda:WandaCriterion",
        facts={"scores": "units", "needs": "inputs", "streams": True},
    ),
    Entry(
        name="flap",
        title="FLAP, fluctuation",
        summary="How far a unit's output moves about its mean, times the weights that read it; "
        "made for bias compensation. Needs one forward pass.",
        target="qpruner_core.importance.flap:FlapCriterion",
        facts={"scores": "units", "needs": "inputs", "streams": True},
    ),
    Entry(
        name="magnitude",
        title="Weight magnitude",
        summary="Norm of the weights a unit owns. Needs no calibration data.",
        target="qpruner_core.importance.magnitude:MagnitudeCriterion",
        options=(
            Option("p", default=2.0, low=1.0, high=4.0, help="Order of the norm: 1 is L1, 2 L2."),
        ),
        facts={"scores": "units", "needs": "weights", "streams": True},
    ),
    Entry(
        name="random",
        title="Random (control)",
        summary="A seeded random score: what any criterion has to beat.",
        target="qpruner_core.importance.random:RandomCriterion",
        facts={"scores": "units", "needs": "weights", "streams": True, "takes_seed": True},
    ),
    Entry(
        name="mutual_information",
        title="Mutual information",
        summary="I(layer output; model prediction) by nearest neighbours, the signal of the "
        "QPruner paper.",
        target="qpruner_core.importance.mutual_information:MutualInformation",
        options=(
            _n_components(4),
            Option("n_neighbors", default=3, low=1, high=20, help="Neighbours of the estimator."),
            _N_SAMPLES,
        ),
        facts=_INFORMATION,
    ),
    Entry(
        name="mutual_information_binned",
        title="Mutual information, binned",
        summary="I(layer output; model prediction) by counting in bins of equal numbers, cleaned "
        "of what chance adds.",
        target="qpruner_core.importance.mutual_information_binned:BinnedInformation",
        options=(
            _n_components(3),
            Option("n_bins", default=4, low=2, high=64, help="Bins per dimension."),
            _N_SAMPLES,
        ),
        facts=_INFORMATION,
    ),
    Entry(
        name="mutual_information_gaussian",
        title="Mutual information, Gaussian",
        summary="I(layer output; log-probabilities of the prediction) in closed form from their "
        "correlations. The fastest.",
        target="qpruner_core.importance.mutual_information_gaussian:GaussianInformation",
        options=(
            _n_components(16),
            Option(
                "n_outputs",
                default=8,
                low=1,
                high=32,
                help="Dimensions kept of the prediction.",
            ),
            _N_SAMPLES,
        ),
        facts=_INFORMATION,
    ),
    Entry(
        name="block_influence",
        title="Block Influence",
        summary="1 - cos(layer input, layer output): how far a layer turns the residual stream.",
        target="qpruner_core.importance.block_influence:BlockInfluence",
        facts={"scores": "layers", "needs": "activations", "streams": True},
    ),
)
"""Facts: ``scores`` is ``units`` or ``layers``; ``needs`` is ``weights``, ``gradients``,
``inputs`` (moments of what enters output projections) or ``activations``; ``streams`` says whether
one layer at a time in memory is enough; ``takes_seed`` whether the target is called with a
``seed`` beside its options; ``unit`` the unit of its values, where they have one.
"""

ARCHITECTURES: Registry[Architecture] = Registry(
    "architecture",
    Entry(
        name="llama",
        title="Llama",
        summary="Pre-norm decoder with rotary positions, grouped-query attention and a "
        "gated MLP; biases in attention or MLP where the config asks for them.",
        target="qpruner_core.models.architectures.llama:FAMILY",
    ),
    Entry(
        name="mistral",
        title="Mistral",
        summary="Llama's blocks without biases; every layer may look back over a "
        "sliding window alone.",
        target="qpruner_core.models.architectures.llama:FAMILY",
    ),
    Entry(
        name="qwen2",
        title="Qwen2",
        summary="Llama's blocks with biases on queries, keys and values; the later "
        "layers may slide.",
        target="qpruner_core.models.architectures.llama:FAMILY",
    ),
    Entry(
        name="qwen3",
        title="Qwen3",
        summary="Llama's blocks with a norm over every query and key head and heads of "
        "a size of their own.",
        target="qpruner_core.models.architectures.llama:FAMILY",
    ),
    Entry(
        name="gemma2",
        title="Gemma 2",
        summary="Norms before and behind every block, sliding and full attention in "
        "turn, logits of attention and head capped.",
        target="qpruner_core.models.architectures.gemma:FAMILY",
    ),
    Entry(
        name="gemma3_text",
        title="Gemma 3 (text)",
        summary="Gemma 2's blocks with a norm over every query and key head; five "
        "sliding layers to a full one, each with its own rotary base.",
        target="qpruner_core.models.architectures.gemma:FAMILY",
    ),
    Entry(
        name="phi3",
        title="Phi-3",
        summary="Llama's blocks with queries, keys and values in one fused projection "
        "and gate and up in another; Phi-4-mini too.",
        target="qpruner_core.models.architectures.phi3:FAMILY",
    ),
    Entry(
        name="olmo2",
        title="OLMo 2",
        summary="Norms behind the blocks and over all query and key heads together, so "
        "heads stay: MLP channels and layers can leave.",
        target="qpruner_core.models.architectures.olmo2:FAMILY",
    ),
    Entry(
        name="smollm3",
        title="SmolLM3",
        summary="Llama's blocks; every fourth layer knows no positions.",
        target="qpruner_core.models.architectures.smollm3:FAMILY",
    ),
    Entry(
        name="granite",
        title="Granite",
        summary="Llama's blocks with multipliers of embedding, attention, residual "
        "stream and logits.",
        target="qpruner_core.models.architectures.granite:FAMILY",
    ),
    Entry(
        name="mixtral",
        title="Mixtral",
        summary="Mixture of experts: Llama's attention, a router and gated MLPs of which every "
        "token takes a few.",
        target="qpruner_core.models.architectures.moe:MIXTRAL",
    ),
    Entry(
        name="qwen3_moe",
        title="Qwen3-MoE",
        summary="Mixture of experts: Qwen3's attention, a router and gated MLPs of which every "
        "token takes a few; some layers may be dense.",
        target="qpruner_core.models.architectures.moe:QWEN3_MOE",
    ),
    Entry(
        name="gpt_neox",
        title="GPT-NeoX",
        summary="GPT-NeoX and Pythia decoder: rotary positions on a part of every head, fused "
        "query, key and value, attention and MLP side by side.",
        target="qpruner_core.models.architectures.gpt_neox:FAMILY",
    ),
    Entry(
        name="opt",
        title="OPT",
        summary="OPT decoder: learned positions, biases everywhere, an MLP without a gate; "
        "OPT-350m with its narrow embedding and later norms included.",
        target="qpruner_core.models.architectures.opt:FAMILY",
    ),
    Entry(
        name="gpt2",
        title="GPT-2",
        summary="GPT-2 decoder: learned positions, fused query, key and value, an MLP without a "
        "gate, weights stored with inputs first.",
        target="qpruner_core.models.architectures.gpt2:FAMILY",
    ),
)
"""Chosen by exact ``config.model_type``; a target is an `Architecture`, which imports no torch."""

_TABLES_4_BIT = 16 * 4 + 256 * 4 + 4  # levels, levels of the scales, mean of the scales
_FORMAT_4_BIT = PrecisionFormat(
    weight_bits=4,
    block_size=64,
    block_scale_bytes=1,
    nested_block_size=256,
    nested_scale_bytes=4,
    table_bytes=_TABLES_4_BIT,
)

PRECISIONS: Registry[Precision] = Registry(
    "precision",
    Entry(
        name="nf4",
        title="NF4",
        summary="4-bit normal-float levels, blocks of 64, double quantised (QLoRA, "
        "arXiv:2305.14314).",
        target="qpruner_core.quantization.nf4:PRECISION",
        facts={"format": _FORMAT_4_BIT, "bits": 4},
    ),
    Entry(
        name="fp4",
        title="FP4",
        summary="4-bit floating-point levels, blocks of 64, double quantised.",
        target="qpruner_core.quantization.fp4:PRECISION",
        facts={"format": _FORMAT_4_BIT, "bits": 4},
    ),
    Entry(
        name="int8",
        title="INT8",
        summary="8-bit integers with one scale per output row; activations stay as they are.",
        target="qpruner_core.quantization.int8:PRECISION",
        facts={"format": PrecisionFormat(weight_bits=8, row_scale_bytes=4), "bits": 8},
    ),
    Entry(
        name="bf16",
        title="BF16",
        summary="16-bit brain float: the weight as it is trained and shipped.",
        target="qpruner_core.quantization.bf16:PRECISION",
        facts={"format": PrecisionFormat(weight_bits=16), "bits": 16},
    ),
)
"""Facts: ``format`` is a `PrecisionFormat`, ``bits`` the nominal width (4, 8 or 16), which
picks the colour.
"""

_N_STARTUP = Option(
    "n_startup",
    default=10,
    low=1,
    high=1000,
    help="Plans measured, baselines included, before the strategy learns from them.",
)

STRATEGIES: Registry[Callable[..., Any]] = Registry(
    "search strategy",
    Entry(
        name="refit",
        title="Predicted front, refitted",
        summary="Measures plans of the predicted front, refits the cost of every layer on them, "
        "and solves the front anew for every trial.",
        target="qpruner_core.search.refit:Refit",
        options=(
            Option(
                "draws",
                default=3,
                low=0,
                high=32,
                help="Fronts solved for draws of the believed costs, beside the expected ones.",
            ),
            Option(
                "rounds",
                default=3,
                low=0,
                high=16,
                help="Rounds in which neighbours of the best candidates are looked at.",
            ),
        ),
        facts={"kind": "allocator", "seeded": False},
    ),
    Entry(
        name="front",
        title="Predicted front alone",
        summary="Measures plans of the predicted front, spread over the bytes, and learns "
        "nothing from them.",
        target="qpruner_core.search.predicted:Predicted",
        facts={"kind": "allocator", "seeded": False},
    ),
    Entry(
        name="gp_seeded",
        title="Gaussian process from the predicted front",
        summary="Measures points of the predicted front first, then lets a Gaussian process "
        "refine them.",
        target="qpruner_core.search.gp:GpStrategy",
        options=(_N_STARTUP,),
        facts={"kind": "sampler", "seeded": True},
    ),
    Entry(
        name="gp",
        title="Gaussian process",
        summary="Bayesian optimisation from random first points.",
        target="qpruner_core.search.gp:GpStrategy",
        options=(_N_STARTUP,),
        facts={"kind": "sampler", "seeded": False},
    ),
    Entry(
        name="tpe",
        title="Tree-structured Parzen estimator",
        summary="Optuna's multi-objective TPE.",
        target="qpruner_core.search.tpe:TpeStrategy",
        options=(_N_STARTUP,),
        facts={"kind": "sampler", "seeded": False},
    ),
    Entry(
        name="nsga2",
        title="NSGA-II",
        summary="An evolutionary search for the front.",
        target="qpruner_core.search.nsga2:Nsga2Strategy",
        options=(
            Option(
                "population_size",
                default=12,
                low=2,
                high=200,
                help="Plans per generation.",
            ),
        ),
        facts={"kind": "sampler", "seeded": False},
    ),
    Entry(
        name="random",
        title="Random (control)",
        summary="Uniform plans: what any strategy has to beat.",
        target="qpruner_core.search.random:RandomStrategy",
        facts={"kind": "sampler", "seeded": False},
    ),
)
"""The fact ``kind`` says what a target gives when it is called: ``sampler`` an Optuna sampler, for
``seed`` and the entry's options; ``allocator`` an `Allocator`, for the options. ``seeded`` says
whether points of the predicted front are measured before a sampler is asked."""

EXPORTERS: Registry[Exporter] = Registry(
    "export format",
    Entry(
        name="hf_mixed",
        title="Hugging Face, mixed precision",
        summary="Packed bitsandbytes weights; opens in stock transformers with trust_remote_code.",
        target="qpruner_core.export.hf_mixed:EXPORTER",
    ),
    Entry(
        name="hf_16bit",
        title="Hugging Face, 16 bit",
        summary="The pruned model at 16 bit; uniform widths open without remote code.",
        target="qpruner_core.export.hf_16bit:EXPORTER",
    ),
)


INITIALIZATIONS: Registry[Callable[..., Initialization]] = Registry(
    "adapter initialisation",
    Entry(
        name="default",
        title="Random A, B = 0",
        summary="LoRA's own: training starts at the compressed model itself.",
        target="qpruner_core.recovery.default:DefaultInitialization",
        facts={"shifts": "never"},
    ),
    Entry(
        name="loftq",
        title="LoftQ",
        summary="Adapters start at what quantising lost, layer by layer at its own precision.",
        target="qpruner_core.recovery.loftq:LoftQInitialization",
        options=(
            Option(
                "iterations",
                default=1,
                low=0,
                high=20,
                help="Alternations of quantising and fitting the adapter; with one the packed "
                "weights stay those of the plan, with none nothing is fitted.",
            ),
        ),
        facts={"shifts": "from the second alternation"},
    ),
    Entry(
        name="pissa",
        title="PiSSA on the quantised residual",
        summary="Adapters start at the largest singular directions of the weight, and the rest is "
        "quantised.",
        target="qpruner_core.recovery.pissa:PissaInitialization",
        facts={"shifts": "always"},
    ),
)
"""The fact ``shifts`` says when it takes something from the weights before they are quantised, so
that the packed ones are not those of the plan: ``never``, ``always``, or ``from the second
alternation`` of its option ``iterations``."""

OPTIMIZERS: Registry[Callable[..., Any]] = Registry(
    "optimiser",
    Entry(
        name="adamw",
        title="AdamW",
        summary="Two float32 moments for every trained parameter.",
        target="qpruner_core.recovery.optimizers:adamw",
        facts={"state_bytes": 8.0, "devices": ("cpu", "cuda")},
    ),
    Entry(
        name="adamw_8bit",
        title="AdamW, 8 bit",
        summary="Moments in 8 bit with a scale per 256; those of small tensors stay in float32.",
        target="qpruner_core.recovery.optimizers:adamw_8bit",
        facts={"state_bytes": 2.0, "devices": ("cpu", "cuda")},
    ),
    Entry(
        name="paged_adamw",
        title="AdamW, paged",
        summary="Float32 moments that move to host memory when the card runs short. CUDA only.",
        target="qpruner_core.recovery.optimizers:paged_adamw",
        facts={"state_bytes": 8.0, "devices": ("cuda",)},
    ),
    Entry(
        name="paged_adamw_8bit",
        title="AdamW, 8 bit, paged",
        summary="8-bit moments that move to host memory when the card runs short. CUDA only.",
        target="qpruner_core.recovery.optimizers:paged_adamw_8bit",
        facts={"state_bytes": 2.0, "devices": ("cuda",)},
    ),
)
"""The fact ``state_bytes`` says what one trained parameter adds to the optimiser's state, and
``devices`` where it runs."""


def precision_formats() -> dict[str, PrecisionFormat]:
    """Return precision name -> how it stores a weight."""
    formats: dict[str, PrecisionFormat] = {}
    for entry in PRECISIONS:
        stored = entry.facts["format"]
        if not isinstance(stored, PrecisionFormat):
            raise TypeError(f"precision {entry.name!r} has no PrecisionFormat among its facts")
        formats[entry.name] = stored
    return formats


def state_bytes_of(optimizer: str) -> float:
    """Return what an optimiser keeps for one trained parameter; bytes.

    Raises:
        UnknownNameError: It has no entry.
    """
    stated = OPTIMIZERS.entry(optimizer).facts["state_bytes"]
    if not isinstance(stated, float):
        raise TypeError(f"optimiser {optimizer!r} has no state_bytes among its facts")
    return stated


def check_layer_signal(name: str) -> None:
    """Refuse a criterion that scores units where a signal per layer is asked for.

    Raises:
        UnknownNameError: It has no entry.
        BadInputError: It scores units.
    """
    if CRITERIA.entry(name).facts["scores"] != "layers":
        raise BadInputError(
            f"A signal per layer was asked of {name!r}, which scores units. Choose one of "
            f"{', '.join(entry.name for entry in CRITERIA if entry.facts['scores'] == 'layers')}."
        )


def check_spec(spec: RunSpec) -> None:
    """Refuse names and options that no entry knows, before anything is computed.

    Raises:
        UnknownNameError: A criterion, precision, strategy or format has no entry.
        BadInputError: An option is unknown or out of range, or a layer signal was asked to
            score units.
    """
    for name in spec.importance.criteria:
        CRITERIA.options(name, spec.importance.options.get(name, {}))
    if CRITERIA.entry(spec.pruning.criterion).facts["scores"] != "units":
        raise BadInputError(
            f"Pruning by {spec.pruning.criterion!r} was asked for, but it scores whole layers. "
            "Choose one "
            f"of {', '.join(e.name for e in CRITERIA if e.facts['scores'] == 'units')}."
        )
    check_layer_signal(spec.search.information)
    information = spec.importance.options.get(spec.search.information, {})
    CRITERIA.options(spec.search.information, information)
    for name in spec.search.precisions:
        PRECISIONS.entry(name)
    STRATEGIES.options(spec.search.strategy, spec.search.options)
    EXPORTERS.entry(spec.export.format)
    check_recovery(spec.recovery)
    check_recovery_in_trials(spec)


def check_recovery(spec: RecoverySpec) -> None:
    """Refuse an initialisation, its options or an optimiser that no entry knows.

    Raises:
        UnknownNameError: A name has no entry.
        BadInputError: An option is unknown or out of range.
    """
    INITIALIZATIONS.options(spec.initialization, spec.initialization_options)
    OPTIMIZERS.entry(spec.optimizer)


def check_recovery_in_trials(spec: RunSpec) -> None:
    """Refuse to begin the training of trials by other packed weights than those of the plan: what
    trials share is quantised once, from the weights as they are.

    Raises:
        BadInputError: The initialisation takes something from the weights.
    """
    name, steps = spec.recovery.initialization, spec.search.recover_steps
    if not steps:
        return
    shifts = INITIALIZATIONS.entry(name).facts["shifts"]
    options = INITIALIZATIONS.options(name, spec.recovery.initialization_options)
    again = shifts == "from the second alternation" and int(options.get("iterations", 0)) > 1
    if shifts == "always" or again:
        words = f"{name} with {options['iterations']} iterations" if again else name
        raise BadInputError(
            f"Recovery of {steps} steps in each trial was to begin by {words}, which quantises "
            f"other weights than those that all trials share. Begin by loftq with 1 iteration or "
            f"by default, or leave recovery for after the search."
        )
