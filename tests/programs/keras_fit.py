"""Keras' `model.fit` under MultiWorkerMirroredStrategy, as TensorFlow's guide has it."""

import json
import os

import tensorflow as tf

strategy = tf.distribute.MultiWorkerMirroredStrategy()
tf.keras.utils.set_random_seed(0)
inputs = tf.random.stateless_normal((64, 8), (1, 2))
data = tf.data.Dataset.from_tensor_slices((inputs, tf.reduce_sum(inputs, 1, keepdims=True))).batch(16)
with strategy.scope():
    model = tf.keras.Sequential([tf.keras.layers.Input((8,)), tf.keras.layers.Dense(1)])
    model.compile("sgd", "mse")
history = model.fit(data, epochs=2, verbose=0)
if json.loads(os.environ["TF_CONFIG"])["task"]["index"] == 0:
    print("RESULT", json.dumps({"losses": history.history["loss"]}), flush=True)
