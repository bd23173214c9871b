"""The bundled model: a small Qwen2.5-VL, the synthetic worlds, and how it was trained.

world.py    clips that show letters, and the questions one can ask of them
film.py     films with places and letters that come back, and the questions one can ask of them
scenery.py  the pictures of a film
samples.py  a clip as an mp4 with a truth file
model.py    the architecture, the tokenizer and the files around the weights
training/   how it was trained:
  streams.py  random streams of chunks with questions asked along the way
  films.py    the same of films
  packing.py  one stream and all its questions as one sequence
  compute.py  the model's parts, computed faster than transformers does
  train.py    the training script
"""
