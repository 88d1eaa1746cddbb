"""The rooms that preprocess.py, pretrain.py, generate.py and train_tokenizer.py share, in six wings."""
