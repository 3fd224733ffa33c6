package main

import (
	"context"
	"time"
)

// forgetEvery is the pause between two looks for what the state need not keep; the first comes after a tenth of it.
const forgetEvery = time.Hour

// forget keeps the state from growing for ever. It is owed to nobody: what fails is told, and tried again.
func (a *app) forget(ctx context.Context) error {
	if a.cfg.State.Keep <= 0 { // a configuration that was not read from a file
		return nil
	}
	for wait := forgetEvery / 10; ; wait = forgetEvery {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		f, err := a.state.Forget(ctx, a.cfg.State.Keep)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			a.log.WarnContext(ctx, "old batches not removed; it is tried again", "pause", forgetEvery, "error", err)
		case f.Batches+f.Campaigns+f.Products > 0:
			a.log.InfoContext(ctx, "forgotten", "keep", a.cfg.State.Keep, "batches", f.Batches, "items", f.Items, "payloads", f.Payloads,
				"campaigns", f.Campaigns, "products", f.Products)
		}
	}
}
