package dialect

import "berth.dev/berth/matcher"

// Builtin is the table of the dialects that are known, each as its vendor documents it.
func Builtin() Table { return Table{neutral(), cci(), cce(), eci(), tke(), vci()} }

// neutral is the project's own dialect, and what every other one is translated to.
func neutral() Dialect {
	return Dialect{
		Name: "berth", Neutral: true, Prefix: neutralPrefix,
		Order: matcher.OrderSaved, Conflict: matcher.ConflictPinWins,
		Keys: []Key{
			{Name: "auto-match", Meaning: MeansAutoMatch},
			{Name: "strategy", Meaning: MeansStrategy},
			{Name: "snapshot", Meaning: MeansPin},
			{Name: "conflict", Meaning: MeansConflict},
			{Name: "reject-if-unavailable", Meaning: MeansReject},
			{Name: "perfect-match", Meaning: MeansPerfectMatch},
			{Name: "match-count", Meaning: MeansMatchCount},
			{Name: "create-if-missing", Meaning: MeansCreate},
			{Name: "keep-disk-minutes", Meaning: MeansKeepDisk},
			{Name: "plain-http-registries", Meaning: MeansPlainHTTP},
			{Name: "insecure-registries", Meaning: MeansInsecure},
			{Name: "matched-snapshot", Meaning: MeansResultName},
		},
	}
}

// cci is Huawei CCI: absent means off (C-7), the strategy is "size" by default (C-8). Its exact match is what others
// call perfect: all images of the pod have to match.
func cci() Dialect {
	return Dialect{
		Name: "cci", Prefix: "cci.io/",
		Order: matcher.OrderSize, Conflict: matcher.ConflictRejectIfDifferent,
		Keys: []Key{
			{Name: "image-snapshot-auto-match", Meaning: MeansAutoMatch},
			{Name: "image-snapshot-usage-strategy", Meaning: MeansStrategy, Values: map[string]string{"size": "size", "quantity": "quantity"}},
			{Name: "image-snapshot-specified-name", Meaning: MeansPinName},
			{Name: "image-snapshot-exact-match", Meaning: MeansPerfectMatch},
			{Name: "image-snapshot-reject-if-not-available", Meaning: MeansReject},
			{Name: "image-snapshot-create-if-not-present", Meaning: MeansCreate},
		},
	}
}

// cce is Huawei CCE Autopilot: "if the cache does not exist or lacks the images it is not used". Its key for automatic
// matching is in no copy of its documentation that could be read, so there is none here.
func cce() Dialect {
	return Dialect{
		Name: "cce", Prefix: "imagecache.cce.io/",
		Order: matcher.OrderSaved, Conflict: matcher.ConflictPinWins, PinNeedsMatch: true,
		Keys: []Key{{Name: "specified-name", Meaning: MeansPinName}},
	}
}

// eci is Alibaba ECI: on by default for its pods (E-4, Q4), which its label marks; a pin wins (E-9) and has to be
// usable (E-11); creates what it does not find (E-5). eci-image-cache and eci-image-snapshot-id are of the older
// generation.
func eci() Dialect {
	return Dialect{
		Name: "eci", Prefix: "k8s.aliyun.com/",
		Order: matcher.OrderDegree, Conflict: matcher.ConflictPinWinsSilently, RejectUnavailable: true,
		AutoDefault: true, CreateWithAuto: true, OptInLabel: "alibabacloud.com/eci",
		Keys: []Key{
			{Name: "eci-auto-imc", Meaning: MeansAutoMatch},
			{Name: "eci-image-cache", Meaning: MeansAutoMatch},
			{Name: "eci-imc-id", Meaning: MeansPinID},
			{Name: "eci-image-snapshot-id", Meaning: MeansPinID},
			{Name: "imc-perfect-match", Meaning: MeansPerfectMatch},
			{Name: "imc-match-count-request", Meaning: MeansMatchCount},
			{Name: "plain-http-registry", Meaning: MeansPlainHTTP},
			{Name: "insecure-registry", Meaning: MeansInsecure},
			{Name: "eci-matched-image-cache", Meaning: MeansResultID},
		},
	}
}

// tke is Tencent TKE super nodes: one key with two meanings, "auto" or an ID.
func tke() Dialect {
	return Dialect{
		Name: "tke", Prefix: "eks.tke.cloud.tencent.com/",
		Order: matcher.OrderSaved, Conflict: matcher.ConflictPinWins,
		Keys: []Key{
			{Name: "use-image-cache", Meaning: MeansPinID, Words: map[string]Word{"auto": {MeansAutoMatch, truth}}},
			{Name: "image-cache-disk-retain-minute", Meaning: MeansKeepDisk},
			{Name: "registry-http-endpoint", Meaning: MeansPlainHTTP},
			{Name: "registry-insecure-skip-verify", Meaning: MeansInsecure},
		},
	}
}

// vci is Volcengine VCI: matching is the default, creation has to be asked for.
func vci() Dialect {
	return Dialect{
		Name: "vci", Prefix: "vci.vke.volcengine.com/",
		Order: matcher.OrderSaved, Conflict: matcher.ConflictPinWins, AutoDefault: true, OptInByKey: true,
		Keys: []Key{{Name: "enable-auto-create-imc", Meaning: MeansCreate}},
	}
}
