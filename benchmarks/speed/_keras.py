"""The released network as its authors use it, in its own interpreter; prediction.py runs this script.

_keras.py FOLDER WEIGHTS.h5 THREADS: FOLDER holds window.npy (N, 5). The script prints versions in one line of JSON. For
every line that it reads, it predicts once and prints the seconds. At the end it writes FOLDER/keras.npy (N,).
"""

import json
import os
import sys
import time

os.environ |= {"TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
import numpy as np
import tensorflow as tf
import tf_keras as keras

BATCH = 100_000
"""The batch size of the authors' prediction script."""


def stream(inputs, first: int):
    """One of the two streams; its layers have the names in the file, beginning with `dense` or `dense_6`."""

    def dense(number: int, units: int, x, **options):
        name = f"dense_{first + number}" if first + number else "dense"
        return keras.layers.Dense(units, name=name, **options)(x)

    x = dense(0, 64, inputs)
    h = dense(1, 8, x, activation="relu")
    shift, amplitude, rate = (dense(number, 64, h) for number in (2, 3, 4))
    power = keras.layers.Lambda(tf.exp)(keras.layers.Multiply()([rate, x]))
    x = keras.layers.Add()([shift, keras.layers.Multiply()([amplitude, power])])
    return keras.layers.LeakyReLU(0.3)(dense(5, 32, x))


def build(weights: str) -> keras.Model:
    values, differences = keras.Input((5,)), keras.Input((4,))
    both = keras.layers.Concatenate()([stream(values, 0), stream(differences, 6)])
    model = keras.Model([values, differences], keras.layers.Dense(1, "tanh", name="dense_12")(both))
    model.load_weights(weights, by_name=True)
    return model


def main(folder: str, weights: str, threads: str) -> None:
    tf.config.threading.set_intra_op_parallelism_threads(int(threads))
    tf.config.threading.set_inter_op_parallelism_threads(int(threads))
    window = np.load(f"{folder}/window.npy")
    inputs, model, answer = [window, np.diff(window, axis=1)], build(weights), None
    print(json.dumps({"tensorflow": tf.__version__, "tf-keras": keras.__version__}), flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        answer = model.predict(inputs, batch_size=BATCH, verbose=0)
        print(json.dumps({"seconds": time.perf_counter() - started}), flush=True)
    np.save(f"{folder}/keras.npy", answer[:, 0])


if __name__ == "__main__":
    main(*sys.argv[1:])
