package nodeservice

import (
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/node/disks"
	"berth.dev/berth/node/events"
	"berth.dev/berth/node/imageimport"
	"berth.dev/berth/node/ondemand"
	"berth.dev/berth/node/stage"
	controlv1 "berth.dev/berth/proto/berth/control/v1"
	"berth.dev/berth/readahead"
)

func diskStateMessage(state stage.State) controlv1.DiskState {
	switch state {
	case disks.StateWaiting:
		return controlv1.DiskState_DISK_STATE_WAITING
	case stage.StateWanted:
		return controlv1.DiskState_DISK_STATE_WANTED
	case stage.StateCreating:
		return controlv1.DiskState_DISK_STATE_CREATING
	case stage.StateAttaching:
		return controlv1.DiskState_DISK_STATE_ATTACHING
	case stage.StateMounting:
		return controlv1.DiskState_DISK_STATE_MOUNTING
	case stage.StateIdle:
		return controlv1.DiskState_DISK_STATE_IDLE
	case stage.StateInUse:
		return controlv1.DiskState_DISK_STATE_IN_USE
	case stage.StateDraining:
		return controlv1.DiskState_DISK_STATE_DRAINING
	case stage.StateUnmounting:
		return controlv1.DiskState_DISK_STATE_UNMOUNTING
	case stage.StateDetaching:
		return controlv1.DiskState_DISK_STATE_DETACHING
	case stage.StateDeleting:
		return controlv1.DiskState_DISK_STATE_DELETING
	case stage.StateFailed:
		return controlv1.DiskState_DISK_STATE_FAILED
	}
	return controlv1.DiskState_DISK_STATE_UNSPECIFIED
}

func importResultMessage(result imageimport.Result) controlv1.ImportResult {
	switch result {
	case imageimport.Registered:
		return controlv1.ImportResult_IMPORT_RESULT_REGISTERED
	case imageimport.Left:
		return controlv1.ImportResult_IMPORT_RESULT_LEFT
	case imageimport.Refused:
		return controlv1.ImportResult_IMPORT_RESULT_REFUSED
	case imageimport.Failed:
		return controlv1.ImportResult_IMPORT_RESULT_FAILED
	case imageimport.Removed:
		return controlv1.ImportResult_IMPORT_RESULT_REMOVED
	case imageimport.Withdrawn:
		return controlv1.ImportResult_IMPORT_RESULT_WITHDRAWN
	}
	return controlv1.ImportResult_IMPORT_RESULT_UNSPECIFIED
}

func chosenDiskResultMessage(result ondemand.Result) controlv1.ChosenDiskResult {
	switch result {
	case ondemand.ResultReady:
		return controlv1.ChosenDiskResult_CHOSEN_DISK_RESULT_READY
	case ondemand.ResultLate:
		return controlv1.ChosenDiskResult_CHOSEN_DISK_RESULT_LATE
	case ondemand.ResultFailed:
		return controlv1.ChosenDiskResult_CHOSEN_DISK_RESULT_FAILED
	case ondemand.ResultNoRoom:
		return controlv1.ChosenDiskResult_CHOSEN_DISK_RESULT_NO_ROOM
	}
	return controlv1.ChosenDiskResult_CHOSEN_DISK_RESULT_UNSPECIFIED
}

func readAheadStateMessage(result readahead.Result) controlv1.ReadAheadState {
	switch result {
	case readahead.ResultWaiting:
		return controlv1.ReadAheadState_READ_AHEAD_STATE_WAITING
	case readahead.ResultRunning:
		return controlv1.ReadAheadState_READ_AHEAD_STATE_RUNNING
	case readahead.ResultDone:
		return controlv1.ReadAheadState_READ_AHEAD_STATE_DONE
	case readahead.ResultNothing:
		return controlv1.ReadAheadState_READ_AHEAD_STATE_NOTHING
	case readahead.ResultMemory:
		return controlv1.ReadAheadState_READ_AHEAD_STATE_MEMORY
	case readahead.ResultStopped:
		return controlv1.ReadAheadState_READ_AHEAD_STATE_STOPPED
	case readahead.ResultFailed:
		return controlv1.ReadAheadState_READ_AHEAD_STATE_FAILED
	}
	return controlv1.ReadAheadState_READ_AHEAD_STATE_UNSPECIFIED
}

func layerMatchMessage(by layerdisk.Match) controlv1.LayerMatch {
	switch by {
	case layerdisk.MatchChainID:
		return controlv1.LayerMatch_LAYER_MATCH_CHAIN_ID
	case layerdisk.MatchDiffID:
		return controlv1.LayerMatch_LAYER_MATCH_DIFF_ID
	case layerdisk.MatchBlob:
		return controlv1.LayerMatch_LAYER_MATCH_BLOB
	case layerdisk.MatchSnapshot:
		return controlv1.LayerMatch_LAYER_MATCH_SNAPSHOT
	}
	return controlv1.LayerMatch_LAYER_MATCH_UNSPECIFIED
}

func missReasonMessage(reason string) controlv1.MissReason {
	switch stage.MissReason(reason) {
	case stage.MissNoDisk:
		return controlv1.MissReason_MISS_REASON_NO_DISK
	case stage.MissNotOnDisk:
		return controlv1.MissReason_MISS_REASON_NOT_ON_DISK
	case stage.MissNotReady:
		return controlv1.MissReason_MISS_REASON_DISK_NOT_READY
	case stage.MissDraining:
		return controlv1.MissReason_MISS_REASON_DISK_DRAINING
	case stage.MissFailed:
		return controlv1.MissReason_MISS_REASON_DISK_FAILED
	case stage.MissContradiction:
		return controlv1.MissReason_MISS_REASON_CONTRADICTION
	case events.ReasonProtocol:
		return controlv1.MissReason_MISS_REASON_PROTOCOL
	case events.ReasonError:
		return controlv1.MissReason_MISS_REASON_ERROR
	}
	return controlv1.MissReason_MISS_REASON_UNSPECIFIED
}
