"""Selectors that learn."""

import torch


def learn(model, parameters, steps, choose=lambda places: None):
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    model.train()
    for _ in range(steps):
        images, labels, places = batch()
        optimizer.zero_grad()
        model(images, labels=labels, selected_patches=choose(places)).loss.backward()
        optimizer.step()
    return model.eval()


def batch(number=32):
    """Images of noise with one patch that is bright above or below, which is the label; and where that
    patch is."""
    images, places = 0.3 * torch.randn(number, 1, 32, 32), torch.randint(16, (number,))
    labels = torch.randint(2, (number,))
    for image, place, label in zip(images, places.tolist(), labels.tolist(), strict=True):
        image[:, place // 4 * 8 + 4 * label :, place % 4 * 8 :][:, :4, :8] += 3
    return images, labels, places
