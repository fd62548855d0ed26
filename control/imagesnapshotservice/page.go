package imagesnapshotservice

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"slices"

	"berth.dev/berth/imagesnapshot"
)

// List returns a page of image snapshots by name, from behind token on, and the token of the next page, which is empty
// if this is the last one. A size of 0 is DefaultPage. A token that was not given for this filter is a FieldError.
func (s *Service) List(ctx context.Context, f Filter, size int, token string) ([]*imagesnapshot.ImageSnapshot, string, error) {
	var problems []error
	if size < 0 || size > MaxPage {
		problems = append(problems, &imagesnapshot.FieldError{Field: "page_size", Detail: fmt.Sprintf("%d is not from 0 to %d", size, MaxPage)})
	}
	after, ok := f.nameIn(token)
	if !ok {
		problems = append(problems, &imagesnapshot.FieldError{Field: "page_token", Detail: "is not one that a list with this filter gave; begin without one"})
	}
	if err := errors.Join(problems...); err != nil {
		return nil, "", err
	}
	size = cmp.Or(size, DefaultPage)
	list, err := s.page(ctx, f, size+1, after)
	if err != nil || len(list) <= size {
		return list, "", err
	}
	return list[:size], f.token(list[size-1].Name), nil
}

// page returns up to limit image snapshots that the filter lets through, by name, from behind a name on.
func (s *Service) page(ctx context.Context, f Filter, limit int, after string) ([]*imagesnapshot.ImageSnapshot, error) {
	if f.NameOrID != "" {
		list, err := s.all(ctx, f)
		return slices.DeleteFunc(list, func(o *imagesnapshot.ImageSnapshot) bool { return o.Name <= after }), err
	}
	filter := f.store()
	filter.After, filter.Limit = after, limit
	return s.reader.List(ctx, filter)
}

// sumBytes of a token tell those that were given for a filter from others.
const sumBytes = 8

// token of the page that begins behind a name.
func (f Filter) token(name string) string {
	return base64.RawURLEncoding.EncodeToString(append(f.sum(name), name...))
}

// nameIn a token; ok is false if it was not given for this filter.
func (f Filter) nameIn(token string) (name string, ok bool) {
	if token == "" {
		return "", true
	}
	data, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || len(data) <= sumBytes {
		return "", false
	}
	name = string(data[sumBytes:])
	return name, token == f.token(name)
}

// sum of a name and everything in the filter.
func (f Filter) sum(name string) []byte {
	h := sha256.New()
	fmt.Fprintf(h, "%q %q", name, f.NameOrID)
	if f.Owner != nil {
		fmt.Fprintf(h, " owner %q", *f.Owner)
	}
	for _, k := range slices.Sorted(maps.Keys(f.Labels)) {
		fmt.Fprintf(h, " label %q %q", k, f.Labels[k])
	}
	return h.Sum(nil)[:sumBytes]
}
