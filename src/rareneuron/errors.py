"""The errors that a user can cause and mend. Every message says what was found, why it matters and what to do."""

from dataclasses import dataclass


class RareNeuronError(Exception):
    """The base of all errors that a user can mend; the command line prints one paragraph and exits with 2.

    `argument` names what a caller of the function can change to mend it, where the message asks for that. Programs
    that have another word for it, such as a command line's option, add theirs (`runs.options`).
    """

    def __init__(self, *args: object, argument: str | None = None) -> None:
        super().__init__(*args)
        self.argument = argument


class NotMeasured(RareNeuronError):
    """These data don't determine the quantity asked for, such as a correlation of neurons that never vary."""


@dataclass(frozen=True)
class Unavailable:
    """Stands where a result would, and says why there is none."""

    why: str


class MissingText(RareNeuronError):
    """The text asked for doesn't exist, or is empty."""


class TooFewNeurons(NotMeasured):
    """A layer has too few neurons for the group asked for, or a curve too few for the analysis asked for."""


class RunFolderError(RareNeuronError):
    """A run folder can't be read, written or continued with these settings."""


class InvalidConfig(RareNeuronError):
    """A setting is unknown or out of its range."""


class UnreadableText(RareNeuronError):
    """A corpus exists, but doesn't hold text in the form that its name promises."""


class HubUnavailable(RareNeuronError):
    """A data set on the Hub can't be opened or read from this machine."""


class UnusableCounts(RareNeuronError):
    """Unigram counts don't fit this vocabulary, or the numbers aren't counts."""


class VocabularyMismatch(RareNeuronError):
    """A tokenizer's ids don't fit the model's vocabulary, or it can't be read token by token."""


class NoRareTokens(RareNeuronError):
    """No token of the corpus passes the filter, so there is nothing to analyse."""


class UnsupportedModel(RareNeuronError):
    """The model is sound, but this package, or the closed form, can't analyse it."""


class ModelNotFound(RareNeuronError):
    """No model, revision or step of that name can be found."""


class BrokenCheckpoint(RareNeuronError):
    """The files of a checkpoint are missing, damaged, or contradict each other."""


class UnfitTokenizer(RareNeuronError):
    """The tokenizer is missing or unreadable, or has ids for which the model has no row."""


class OutOfRange(RareNeuronError):
    """The model has no such layer, neuron, position or token id."""


class WrongEffects(RareNeuronError):
    """The audit in float64 doesn't confirm the effects."""


class WorkerLost(RareNeuronError):
    """The processes that computed a checkpoint died repeatedly."""
