package registry

import (
	"context"
	"fmt"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// Push an image to repository "name:tag" and return its reference with the host. What is counted includes the push;
// see Reset.
func (p *Proxy) Push(ctx context.Context, repository string, img v1.Image) (string, error) {
	text := p.Host() + "/" + repository
	var opts []name.Option
	if p.PlainHTTP() {
		opts = append(opts, name.Insecure)
	}
	ref, err := name.ParseReference(text, opts...)
	if err != nil {
		return "", fmt.Errorf("parse reference %s: %w", text, err)
	}
	err = remote.Write(ref, img, remote.WithContext(ctx), remote.WithTransport(p.server.Client().Transport))
	if err != nil {
		return "", fmt.Errorf("push %s: %w", text, err)
	}
	return text, nil
}
