"""Diffusion as pure tensor maths: schedules, DDIM steps, consistency steps. Only torch."""
