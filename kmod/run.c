// SPDX-License-Identifier: GPL-2.0-only
/* DMAPROBE_RUN: many calls in one. */
#include <linux/uaccess.h>

#include "private.h"

int dmaprobe_op_run(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_run *cmd = ucmd->cmd;
	struct dmaprobe_run_op __user *uops = u64_to_user_ptr(cmd->ops);
	struct dmaprobe_run_state state = {};
	int ret = 0;

	if (ucmd->run || !cmd->nr_ops || cmd->nr_ops > DMAPROBE_RUN_MAX)
		return -EINVAL;
	/* Fail before there is a result that cannot be written. */
	for (u32 i = 0; i < cmd->nr_ops; i++)
		if (put_user(-ECANCELED, &uops[i].result))
			return -EFAULT;
	if (put_user(0, &((struct dmaprobe_run __user *)ucmd->ubuffer)->done))
		return -EFAULT;
	struct dmaprobe_run_op *ops __free(kvfree) =
		dmaprobe_fetch_array(cmd->ops, cmd->nr_ops, sizeof(*ops));
	if (IS_ERR(ops))
		return PTR_ERR(ops);

	state.ops = ops;
	while (state.nr < cmd->nr_ops && !dmaprobe_cancelled() &&
	       (!ret || (cmd->flags & DMAPROBE_RUN_CONTINUE))) {
		struct dmaprobe_run_op *op = &ops[state.nr];
		struct dmaprobe_ucmd call = {
			.session = ucmd->session,
			.ubuffer = u64_to_user_ptr(op->arg),
			.run = &state,
		};

		ret = dmaprobe_dispatch(&call, op->cmd);
		op->cmd = ret ? 0 : call.made;	/* for DMAPROBE_RUN_ID() */
		if (put_user(ret, &uops[state.nr++].result))
			return -EFAULT;
		cond_resched();
	}
	cmd->done = state.nr;
	return 0;
}
