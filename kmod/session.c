// SPDX-License-Identifier: GPL-2.0-only
/* Sessions: the open files of a device. */
#include <linux/capability.h>
#include <linux/cred.h>
#include <linux/fs.h>
#include <linux/module.h>
#include <linux/pm_runtime.h>
#include <linux/sched/user.h>
#include <linux/slab.h>

#include "compat.h"
#include "private.h"

static atomic_t dmaprobe_session_ids;

static int dmaprobe_open(struct inode *inode, struct file *file)
{
	struct dmaprobe_device *dd = container_of(inode->i_cdev, struct dmaprobe_device, cdev);
	struct dmaprobe_session *s;
	int ret;

	s = kzalloc_obj(*s, GFP_KERNEL_ACCOUNT);
	if (!s)
		return -ENOMEM;
	/* The file pins the cdev, and the cdev the device. */
	s->dd = dd;
	s->id = atomic_inc_return(&dmaprobe_session_ids);
	s->uid = current_uid();
	s->read_only = !(file->f_mode & FMODE_WRITE);
	s->privileged = capable(CAP_SYS_RAWIO);
	xa_init_flags(&s->objects, XA_FLAGS_ALLOC1 | XA_FLAGS_ACCOUNT);
	mutex_init(&s->teardown);
	s->inode = dmaprobe_inode_new();
	if (IS_ERR(s->inode)) {
		ret = PTR_ERR(s->inode);
		goto err_free;
	}

	mutex_lock(&dd->lock);
	if (dd->unplugged) {
		ret = -ENODEV;
		goto err_unlock;
	}
	/* vfio-pci-core lets a device that nobody uses sleep; not ours. */
	ret = pm_runtime_resume_and_get(&dd->pdev->dev);
	if (ret)
		goto err_unlock;
	if (!capable(CAP_IPC_LOCK))
		s->user = get_uid(current_user());
	list_add_tail(&s->node, &dd->sessions);
	mutex_unlock(&dd->lock);

	file->private_data = s;
	file->f_mapping = s->inode->i_mapping;
	return 0;

err_unlock:
	mutex_unlock(&dd->lock);
	dmaprobe_inode_put(s->inode);
err_free:
	kfree(s);
	return ret;
}

static int dmaprobe_release(struct inode *inode, struct file *file)
{
	struct dmaprobe_session *s = file->private_data;
	struct dmaprobe_device *dd = s->dd;

	/* The device stops before its memory goes away from under it. */
	dmaprobe_disable(s);
	dmaprobe_objects_teardown(s);
	scoped_guard(mutex, &dd->lock) {
		/* Unplug has done the rest for those it found. */
		if (!list_empty(&s->node)) {
			list_del(&s->node);
			pm_runtime_put(&dd->pdev->dev);
			if (list_empty(&dd->sessions))
				dmaprobe_limits_reset(dd);
		}
	}
	free_uid(s->user);
	dmaprobe_inode_put(s->inode);
	kfree(s);
	return 0;
}

const struct file_operations dmaprobe_fops = {
	.owner = THIS_MODULE,
	.open = dmaprobe_open,
	.release = dmaprobe_release,
	.unlocked_ioctl = dmaprobe_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.uring_cmd = dmaprobe_uring_cmd,
	.mmap = dmaprobe_mmap,
};
