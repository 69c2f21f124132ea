/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * One event for each call, so that a trace of dmaprobe:* lines up with the kernel's
 * own dma:* and iommu:* events.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM dmaprobe

#if !defined(DMAPROBE_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define DMAPROBE_TRACE_H

#include <linux/tracepoint.h>

#include "private.h"

TRACE_EVENT(dmaprobe_op,
	TP_PROTO(const struct dmaprobe_session *s, const char *op, u32 id, u64 iova,
		 u64 length, int result),
	TP_ARGS(s, op, id, iova, length, result),

	TP_STRUCT__entry(
		__string(device, dev_name(&s->dd->dev))
		__string(op, op)
		__field(u32, session)
		__field(u32, id)
		__field(u64, iova)
		__field(u64, length)
		__field(int, result)
	),

	TP_fast_assign(
		__assign_str(device);
		__assign_str(op);
		__entry->session = s->id;
		__entry->id = id;
		__entry->iova = iova;
		__entry->length = length;
		__entry->result = result;
	),

	TP_printk("%s session=%u %s id=%u iova=0x%llx length=0x%llx result=%d",
		  __get_str(device), __entry->session, __get_str(op), __entry->id,
		  __entry->iova, __entry->length, __entry->result)
);

#endif /* DMAPROBE_TRACE_H */

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
