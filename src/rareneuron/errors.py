"""What can go wrong for a user's reason. Every message says what was found, why it matters and what to do."""

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
    """A quantity that these data do not define or cannot tell, such as a correlation of neurons that never vary."""


@dataclass(frozen=True)
class Unavailable:
    """Stands where a result would, and says why there is none."""

    why: str


class MissingText(RareNeuronError):
    """The text asked for is not there, or is empty."""


class TooFewNeurons(NotMeasured):
    """A group was asked for that the layer cannot fill, or a curve is too short for what is asked of it."""


class RunFolderError(RareNeuronError):
    """A run folder that cannot be read, written or continued with these settings."""


class InvalidConfig(RareNeuronError):
    """A setting that is unknown or out of its range."""


class UnreadableText(RareNeuronError):
    """A corpus that is there, but does not hold text in the form its name promises."""


class HubUnavailable(RareNeuronError):
    """A data set on the Hub that cannot be opened or read from here."""


class UnusableCounts(RareNeuronError):
    """Unigram counts that cannot belong to this vocabulary, or are not counts."""


class VocabularyMismatch(RareNeuronError):
    """A tokenizer whose ids do not fit the model's vocabulary, or that cannot be read token by token."""


class NoRareTokens(RareNeuronError):
    """A corpus in which no token passes the filter, so there is nothing to analyse."""


class UnsupportedModel(RareNeuronError):
    """A sound model that this package, or the closed form, doesn't know how to read."""


class ModelNotFound(RareNeuronError):
    """No model, revision or step of that name is within reach."""


class BrokenCheckpoint(RareNeuronError):
    """The files of a checkpoint are missing, damaged, or contradict each other."""


class UnfitTokenizer(RareNeuronError):
    """The tokenizer is missing, unreadable, or has ids that the model has no row for."""


class OutOfRange(RareNeuronError):
    """A layer, neuron, position or token id outside what the model has."""


class WrongEffects(RareNeuronError):
    """Effects that the audit in float64 does not confirm."""


class WorkerLost(RareNeuronError):
    """Processes that computed a checkpoint died over it, again and again."""
