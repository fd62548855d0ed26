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
	ref, err := p.reference(repository)
	if err != nil {
		return "", err
	}
	err = remote.Write(ref, img, remote.WithContext(ctx), remote.WithTransport(p.server.Client().Transport))
	if err != nil {
		return "", fmt.Errorf("push %s: %w", ref, err)
	}
	return p.Host() + "/" + repository, nil
}

// PushIndex does as Push for images of several platforms.
func (p *Proxy) PushIndex(ctx context.Context, repository string, index v1.ImageIndex) (string, error) {
	ref, err := p.reference(repository)
	if err != nil {
		return "", err
	}
	err = remote.WriteIndex(ref, index, remote.WithContext(ctx), remote.WithTransport(p.server.Client().Transport))
	if err != nil {
		return "", fmt.Errorf("push %s: %w", ref, err)
	}
	return p.Host() + "/" + repository, nil
}

func (p *Proxy) reference(repository string) (name.Reference, error) {
	text := p.Host() + "/" + repository
	var opts []name.Option
	if p.PlainHTTP() {
		opts = append(opts, name.Insecure)
	}
	ref, err := name.ParseReference(text, opts...)
	if err != nil {
		return nil, fmt.Errorf("parse reference %s: %w", text, err)
	}
	return ref, nil
}
