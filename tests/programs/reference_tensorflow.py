"""The same training by hand: one process, whole global batches, no launcher. Prints the losses as JSON."""

import json
import sys

import keras
import tensorflow as tf
from tiny_mlp_tf import Mlp

from dtrain.data.sampler import Sampler
from dtrain.job.job import Train

steps, batch, seed, clip = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
keras.utils.set_random_seed(seed)
task = Mlp()
model = task.model()
optimizer = task.optimizer(model)
optimizer.build(model.trainable_variables)
inputs, targets = task.data("train")
sampler = Sampler(len(inputs), Train(steps=steps, global_batch=batch, shards=1, seed=seed))
losses = []
for step in range(steps):
    chosen = sampler.indices(step * batch, batch)
    with tf.GradientTape() as tape:
        loss = task.loss(model, (inputs[chosen], targets[chosen]))
    gradients, _ = tf.clip_by_global_norm(tape.gradient(loss, [v.value for v in model.trainable_variables]), clip)
    optimizer.learning_rate = 0.01 * task.schedule(step, steps)
    optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    losses.append(float(loss))
print(json.dumps(losses))
