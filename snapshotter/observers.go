package snapshotter

import "context"

// Observers are told in turn, each of everything.
type Observers []Observer

var _ Observer = Observers(nil)

// Hit implements Observer.
func (o Observers) Hit(ctx context.Context, hit Hit) {
	for _, observer := range o {
		observer.Hit(ctx, hit)
	}
}

// Miss implements Observer.
func (o Observers) Miss(ctx context.Context, miss Miss) {
	for _, observer := range o {
		observer.Miss(ctx, miss)
	}
}

// Start implements Observer.
func (o Observers) Start(ctx context.Context, start Start) {
	for _, observer := range o {
		observer.Start(ctx, start)
	}
}
